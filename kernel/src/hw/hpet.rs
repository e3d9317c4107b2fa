//! The clock: the main counter of the HPET, which goes on counting whoever runs.
#![allow(unsafe_code)]

use super::physical;
use core::fmt;

/// Where q35 has its HPET.
const BASE: u64 = 0xfed0_0000;
const CAPABILITIES: u64 = BASE;
const CONFIGURATION: u64 = BASE + 0x10;
const COUNTER: u64 = BASE + 0xf0;

const WIDE_COUNTER: u64 = 1 << 13;
const ENABLE: u64 = 1;
/// Longest period that the HPET specification allows: 100 ns, in femtoseconds.
const LONGEST_PERIOD: u64 = 100_000_000;
const FEMTOSECONDS_PER_NANOSECOND: u128 = 1_000_000;

/// The running clock.
#[derive(Debug, Clone, Copy)]
pub struct Hpet {
    period: u64,
}

/// No clock that this kernel can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoClock {
    /// The capability register, as it reads.
    pub capabilities: u64,
}

impl fmt::Display for NoClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no HPET with a 64-bit counter at {BASE:#x} (capabilities {:#018x}): boot with -machine q35,hpet=on",
            self.capabilities
        )
    }
}
impl core::error::Error for NoClock {}

impl Hpet {
    /// Starts the counter if it does not run. A counter that runs is left as it is: it carries the time across the jump.
    ///
    /// # Errors
    /// [`NoClock`] when there is none, or only one of 32 bits.
    pub fn start() -> Result<Self, NoClock> {
        // SAFETY: below 4 GiB everything that is no RAM is mapped as a device; reading has no effect.
        let capabilities = unsafe { physical::load64(CAPABILITIES) };
        let period = capabilities >> 32;
        if period == 0 || period > LONGEST_PERIOD || capabilities & WIDE_COUNTER == 0 {
            return Err(NoClock { capabilities });
        }
        // SAFETY: as above.
        let configuration = unsafe { physical::load64(CONFIGURATION) };
        if configuration & ENABLE == 0 {
            // SAFETY: starting the counter raises no interrupt: no timer is armed.
            unsafe { physical::store64(CONFIGURATION, configuration | ENABLE) };
        }
        Ok(Self { period })
    }

    /// Nanoseconds since the counter was started.
    #[must_use]
    pub fn now(&self) -> u64 {
        // SAFETY: as in `start`.
        let count = unsafe { physical::load64(COUNTER) };
        (u128::from(count) * u128::from(self.period) / FEMTOSECONDS_PER_NANOSECOND) as u64
    }
}
