//! A simulated machine whose remapping hardware has caches that go stale, a queue that takes time, and devices that do DMA
//! between any two steps of the kernel.
//!
//! [`Machine`] is hardware: [`memory`], [`pci`], [`acpi`], [`devices`] and the remapping units of [`vtd`], all under one clock
//! ([`machine`]) and one seed ([`dice`]). [`Kernel`] is a kernel's view of it, the scenario's
//! [`Platform`](scenario::platform::Platform): the code that runs on real machines runs on it unchanged. What happened is in the
//! [`trace`], which no kernel can touch. [`faults`] makes things go wrong on demand. [`probe`] asks one unit without a machine
//! around it.
//!
//! The hardware is written from the specification and shares only the layouts of `spec` with the driver.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod apic;
pub mod config;
pub mod device_tlb;
pub mod devices;
pub mod dice;
mod dma;
pub mod extra;
mod fabric;
pub mod faults;
mod frames;
pub mod machine;
pub mod memory;
pub mod pci;
pub mod platform;
pub mod probe;
pub mod run;
pub mod trace;
pub mod vtd;

pub use config::{Caching, Capture, MachineConfig, Protected, Quirks, Scope, UnitConfig};
pub use device_tlb::{Ats, DevicePages, PageAnswers, Pasids};
pub use extra::{BridgeKind, Extra, Named};
pub use faults::{Faults, QueueFault, QueueFaultKind, Strike};
pub use machine::{Machine, Serial, SerialLine};
pub use platform::{Boot, Kernel};
pub use probe::{Answer, Probe};
pub use run::{Release, Run, RunConfig, run};
pub use trace::{Invalidation, TraceLine};
