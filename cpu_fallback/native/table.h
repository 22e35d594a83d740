// The last lines of every instruction set's source: its kernels gathered in one table.
#pragma once

#include "attention.h"
#include "join.h"
#include "linear.h"
#include "pointwise.h"
#include "screen.h"

namespace {

template <class... Wide>
constexpr bitnet::Kernels make_table(const char* isa, const Wide&... wide) {
    return {isa,           kRowGroups,         kLinearGroups, kHeadGroups, linear, head, join, screen, low_sum, pick,
            norm_quantize, gate_norm_quantize, rope_write,    attend,      {wide...}};
}

}  // namespace
