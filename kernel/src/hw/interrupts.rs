//! Sources of interrupts that nobody wants: the old controllers, and the local ones of the processor. They are masked, so
//! that only messages of devices are left, which [`super::local_apic`] counts.

use super::{local_apic, port};

const PIC_MASKS: [u16; 2] = [0x21, 0xa1];
const MASKED: u32 = 1 << 16;
/// Local vector table: timer, thermal, performance, LINT0, LINT1, error.
const LOCAL_VECTORS: [u64; 6] = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370];

/// Masks the interrupt controllers. The local one is in the mode that it will stay in.
pub fn mask_all() {
    for port in PIC_MASKS {
        port::write8(port, 0xff);
    }
    for offset in LOCAL_VECTORS {
        local_apic::write(offset, local_apic::read(offset) | MASKED);
    }
}
