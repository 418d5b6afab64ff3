// Compiled once per instruction set: VENTOUX_ISA names the namespace, VENTOUX_TABLE the table that it fills.
#include "kernels.h"

#include "fixed.h"
#include "linear.h"
#include "moe.h"
#include "scan.h"
#include "vector_attention.h"

namespace ventoux {
namespace VENTOUX_ISA {
using Product = Vectors<Fp32, Fixed>;
}

const Kernels VENTOUX_TABLE = {
    .name = VENTOUX_NAME,
    .add = VENTOUX_ISA::add,
    .rms_norm = VENTOUX_ISA::rms_norm,
    .linear = VENTOUX_ISA::linear<VENTOUX_ISA::Product>,
    .route = VENTOUX_ISA::route,
    .moe = VENTOUX_ISA::moe<VENTOUX_ISA::Product>,
    .write_latent = VENTOUX_ISA::write_latent,
    .attention = VENTOUX_ISA::vector_attention<VENTOUX_ISA::Product>,
    .scan = VENTOUX_ISA::scan,
};

}  // namespace ventoux
