// The last lines of every instruction set's source: its kernels gathered in one table.
#pragma once

#include "attention.h"
#include "linear.h"
#include "pointwise.h"

namespace {

template <class... Wide>
constexpr bitnet::Kernels make_table(const char* isa, const Wide&... wide) {
    return {isa,  kRowGroups,    kLinearGroups,      kHeadGroups, linear,
            head, norm_quantize, gate_norm_quantize, rope_write,  attend, {wide...}};
}

}  // namespace
