#pragma once

#include <string>

/// Standard atomic weight in g/mol; 0 for a name that is no element.
double standard_atomic_weight(const std::string& symbol);
