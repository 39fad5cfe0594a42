#pragma once

namespace race::cuda {

constexpr int kWarp = 32;  // threads of a warp

}  // namespace race::cuda
