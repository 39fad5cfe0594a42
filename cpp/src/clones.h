#pragma once
// For loops that the compiler vectorises by itself: RACE_EVERY_ISA before a function that is no
// template has it compiled for every instruction set, and the processor's chosen when the library
// is loaded. What it calls must be RACE_INLINE to be compiled along.

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define RACE_EVERY_ISA __attribute__((target_clones("avx512f", "avx2,fma", "default")))
#else
#define RACE_EVERY_ISA
#endif
#define RACE_INLINE inline __attribute__((always_inline))
