"""What nvdisasm prints, read: operands, literals, labels, what the scheduler is told."""

from __future__ import annotations

import pytest
import sass
from sass import ABSOLUTE, LOWER, NEGATIVE, NOT, WIDE, Control, Operand

# A loop as nvdisasm 13.1 prints it for sm_90; the lines of encodings are shortened to one blank.
LISTING = """
	.section	.text._Z1kPfi,"ax",@progbits
	.align	128
_Z1kPfi:
.text._Z1kPfi:
        /*0000*/                   S2R R0, SR_TID.X ;   /* 0x0000000000007919 */
                                                        /* 0x000e220000002100 */
	//## File "/src/kernels/k.cu", line 7
        /*0010*/                   ULDC.64 UR4, c[0x0][0x208] ;   /* 0x0000820000047ab9 */
                                                        /* 0x000fe20000000a00 */
.L_x_0:
        /*0020*/              @!P1 LDG.E R5, desc[UR4][R2.64+-0x40] ;   /* 0xffffc00402059981 */
                                                        /* 0x000ea2000c1e1900 */
        /*0030*/                   FFMA R7, -R5.reuse, |R6|, 0.5 ;   /* 0x3f00000005077423 */
                                                        /* 0x004fc80000000106 */
        /*0040*/              @P0  BRA `(.L_x_0) ;   /* 0xfffffffc00f40947 */
                                                        /* 0x000fea000383ffff */
	.section	.nv.info,"",@"SHT_CUDA_INFO"
        /*0000*/ 	.byte	0x04, 0x2f, 0x08, 0x00
"""


def test_a_listing() -> None:
    (code,) = sass.parse(LISTING).values()
    assert [i.name for i in code] == ["S2R", "ULDC.64", "LDG.E", "FFMA", "BRA"]
    assert [i.line for i in code] == ["", *["k.cu:7"] * 4]
    s2r, uldc, ldg, ffma, bra = code
    assert s2r.control == Control(stall=1, write=0, read=7, wait=0)
    assert uldc.operands[1] == Operand("c", sass.ZERO_REGISTER, 0, 0x208, sass.ZERO_UNIFORM)
    assert ldg.guard == 1 + 16
    assert ldg.operands[1] == Operand("m", 2, WIDE, -0x40, sass.ZERO_UNIFORM)
    assert ldg.control.write == 2
    assert ffma.operands[1:] == (
        Operand("r", 5, NEGATIVE),
        Operand("r", 6, ABSOLUTE),
        Operand("i", 0, 0, 0x3F000000),
    )
    assert ffma.control == Control(stall=4, write=7, read=7, wait=1 << 2)
    assert (bra.guard, bra.operands) == (0, (Operand("l", 0, 0, 0x20),))


@pytest.mark.parametrize(
    ("shown", "operands"),
    [
        ("IADD3.X R4, R5, ~R6, RZ, P1, !PT", [0, 0, sass.INVERTED, 0, 0, NOT]),
        ("HADD2.F32 R4, -RZ, R5.H0_H0", [0, NEGATIVE, LOWER]),
        ("FADD R4, -|R5|, +INF", [0, NEGATIVE | ABSOLUTE, 0]),
    ],
)
def test_signs_and_halves(shown: str, operands: list[int]) -> None:
    decoded = sass.decode(0, shown, Control(1, 7, 7, 0), {})
    assert [o.flags for o in decoded.operands] == operands


def test_numbers() -> None:
    def last(shown: str) -> int:
        return sass.decode(0, shown, Control(1, 7, 7, 0), {}).operands[-1].value

    assert last("MOV R1, -0x2") == 0xFFFFFFFE
    assert last("FADD R1, R1, -QNAN") == 0xFFFFFFFF
    assert last("DADD R2, R2, -2") == 0xC0000000  # the upper half
    assert last("HFMA2.MMA R1, -RZ, RZ, 1.875, 0") == 0x3F800000  # two halves, one of them 1.0f's
    assert last("HFMA2.BF16_V2 R1, -RZ, RZ, 1, 1") == 0x3F803F80


def test_addresses() -> None:
    read = sass.operand("LDS", "[R2+UR4+0x10]", {})
    assert read == Operand("m", 2, 0, 0x10, 4)
    assert sass.operand("LDC", "c[0x3][R2+-0x8]", {}) == Operand("c", 2, 0, -8, 3 * 64 + 63)
    with pytest.raises(ValueError, match="without a factor"):
        sass.operand("LDS", "[R2.X4+0x10]", {})


def test_what_the_machine_reads() -> None:
    kernel = sass.Kernel("_Z1kPfi", 12, 0, sass.parse(LISTING)["_Z1kPfi"])
    head, *lines = sass.program([kernel]).splitlines()
    assert head == "kernel _Z1kPfi 12 0 5"
    assert lines[-1] == "64 0 BRA 5 7 7 0 k.cu:7 1 l 0 0 32 0"
