"""The devices that `fewbit plan` knows: one record each, peak figures without sparsity, and the document that states them.

Peaks that a document gives as instructions a cycle are multiplied out here (cores * units * lanes * 2 * clock), so that the
factors can be read off and checked.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Device:
    """memory, cache: bytes; bandwidth: bytes/s; ops: operations/s (a multiply-add is 2) by the arithmetic's format.

    memory holds the weights (DRAM; flash on a microcontroller), read at bandwidth. cache is what holds them closer (last-level
    cache; SRAM on a microcontroller), read at cache_bandwidth where the document states it. No ops: arithmetic is not bounded.
    """

    name: str
    memory: float
    bandwidth: float
    source: str
    ops: dict[str, float] = field(default_factory=dict)
    cache: float = 0
    cache_bandwidth: float | None = None


KB, MB, GB, TB = 1e3, 1e6, 1e9, 1e12
M, G, T = 1e6, 1e9, 1e12

_TABLE = [
    Device(
        "H100",
        80 * GB,
        3.35 * TB,
        "NVIDIA H100 Tensor Core GPU datasheet (SXM5, dense) and NVIDIA H100 architecture whitepaper (L2 50 MB)",
        {"float32": 67 * T, "float16": 989.4 * T, "int8": 1978.9 * T},
        50 * MB,
    ),
    Device(
        "A100",
        80 * GB,
        2.039 * TB,
        "NVIDIA A100 Tensor Core GPU datasheet (80GB SXM, dense) and NVIDIA A100 architecture whitepaper (L2 40 MB)",
        {"float32": 19.5 * T, "float16": 312 * T, "int8": 624 * T},
        40 * MB,
    ),
    Device(
        "RTX 4090",
        24 * GB,
        1.008 * TB,
        "NVIDIA Ada GPU architecture whitepaper, appendix A (tensor cores, dense; float16 with float32 accumulation; L2 72 MB)",
        {"float32": 82.6 * T, "float16": 165.2 * T, "int8": 660.6 * T},
        72 * MB,
    ),
    Device(
        "Jetson Orin Nano",
        8 * GB,
        68 * GB,
        "NVIDIA Jetson Orin Nano Series data sheet DS-11105 (8GB: 20 dense int8 TOPS, float16 half of it; 1024 CUDA cores at "
        "625 MHz; 4 MB cache shared by the CPU clusters)",
        {"float32": 1024 * 2 * 625 * M, "float16": 10 * T, "int8": 20 * T},
        4 * MB,
    ),
    Device(
        "Jetson Orin Nano Super",
        8 * GB,
        102 * GB,
        "NVIDIA Jetson Orin Nano Super Developer Kit datasheet (67 sparse int8 TOPS, half of it dense, float16 half of that; "
        "1024 CUDA cores at 1020 MHz); cache: data sheet DS-11105",
        {"float32": 1024 * 2 * 1020 * M, "float16": 67 / 4 * T, "int8": 67 / 2 * T},
        4 * MB,
    ),
    Device(
        "Jetson AGX Orin",
        64 * GB,
        204.8 * GB,
        "NVIDIA Jetson AGX Orin Series technical brief (64GB; the GPU alone: 170 sparse int8 TOPS, half of it dense; L2 4 MB)",
        {"float32": 5.3 * T, "float16": 170 / 4 * T, "int8": 170 / 2 * T},
        4 * MB,
    ),
    Device(
        "Raspberry Pi 5",
        8 * GB,
        4 * 4267 * M,
        "Raspberry Pi 5 product brief (8GB, LPDDR4X-4267 on 32 bits, 4 cores at 2.4 GHz, L3 2 MB) and Arm Cortex-A76 Software "
        "Optimization Guide (two 128-bit pipes, FMLA and SDOT each cycle)",
        {
            "float32": 4 * 2 * 4 * 2 * 2.4 * G,
            "float16": 4 * 2 * 8 * 2 * 2.4 * G,
            "int8": 4 * 2 * 16 * 2 * 2.4 * G,
        },
        2 * MB,
    ),
    Device(
        "laptop",
        16 * GB,
        2 * 8 * 5600 * M,
        "AMD Ryzen 7 7840U product page (8 cores, boost 5.1 GHz, two channels of DDR5-5600, L3 16 MB; 16 GB fitted is assumed) "
        "and AMD Software Optimization Guide for Zen4, 57647 (two 256-bit FMA pipes, VNNI on both)",
        {"float32": 8 * 2 * 8 * 2 * 5.1 * G, "int8": 8 * 2 * 32 * 2 * 5.1 * G},
        16 * MB,
    ),
    Device(
        "STM32F4",
        1 * MB,
        16 * 168 * M / 6,
        "ST STM32F407 datasheet DS8626 (1 MB flash, 192 KB SRAM, 168 MHz), reference manual RM0090 (128-bit flash lines, 5 wait "
        "states) and Arm Cortex-M4 TRM (VMUL and VADD, or SMLAD with two multiply-adds, each cycle)",
        {"float32": 168 * M, "int8": 2 * 2 * 168 * M},
        192 * KB,
        4 * 168 * M,
    ),
    Device(
        "STM32H7",
        2 * MB,
        32 * 240 * M / 5,
        "ST STM32H743 datasheet DS12110 (2 MB flash, 128 KB DTCM of 64 bits, 480 MHz), reference manual RM0433 (256-bit flash "
        "words, 4 wait states at 240 MHz) and Arm white paper on the DSP of Cortex-M4 and M7 (one VFMA or SMLAD each cycle)",
        {"float32": 2 * 480 * M, "int8": 2 * 2 * 480 * M},
        128 * KB,
        8 * 480 * M,
    ),
    Device(
        "ESP32-S3",
        8 * MB,
        80 * M / 2,
        "Espressif ESP32-S3-WROOM-1-N8 datasheet (8 MB flash, quad SPI at 80 MHz; 512 KB SRAM) and ESP32-S3 Technical Reference "
        "Manual, Processor Instruction Extensions (two cores at 240 MHz, each a 128-bit load or 16 int8 multiply-adds a cycle)",
        {"float32": 2 * 2 * 240 * M, "int8": 2 * 16 * 2 * 240 * M},
        512 * KB,
        2 * 16 * 240 * M,
    ),
]
DEVICES = {d.name: d for d in _TABLE}
