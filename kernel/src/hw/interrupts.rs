//! Sources of interrupts that nobody wants: the old controllers, and the local ones of the processor. They are masked, so
//! that only messages of devices are left, which [`super::local_apic`] counts.
#![allow(unsafe_code)]

use super::{physical, port};

const PIC_MASKS: [u16; 2] = [0x21, 0xa1];
const LOCAL_APIC: u64 = 0xfee0_0000;
const MASKED: u32 = 1 << 16;
/// Local vector table: timer, thermal, performance, LINT0, LINT1, error.
const LOCAL_VECTORS: [u64; 6] = [0x320, 0x330, 0x340, 0x350, 0x360, 0x370];

/// Masks the interrupt controllers.
pub fn mask_all() {
    for port in PIC_MASKS {
        port::write8(port, 0xff);
    }
    for offset in LOCAL_VECTORS {
        // SAFETY: the local APIC's registers are mapped as a device; masking a source only silences it.
        let entry = unsafe { physical::load32(LOCAL_APIC + offset) };
        // SAFETY: as above.
        unsafe { physical::store32(LOCAL_APIC + offset, entry | MASKED) };
    }
}
