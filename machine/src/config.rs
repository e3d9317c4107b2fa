//! What machine to build: memory, units with their capabilities, chance, faults.

use crate::device_tlb::Ats;
use crate::devices::Habits;
use crate::extra::Extra;
use crate::faults::Faults;
use spec::regs::{Cap, Ecap};
use spec::{Extent, Segment, SourceId, UnitId};

/// CAP of QEMU's unit without its widths.
const QEMU_CAP: u64 = 0x00d2_008c_2220_0006;
/// Left by whatever ran before: a table full of it has present entries.
const RESIDUE: u64 = 0x7c7c_7c7c_7c7c_7c7f;
/// ECAP of QEMU's unit.
const QEMU_ECAP: u64 = 0x0000_0000_00f0_0f4a;

/// A machine.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// Seed of every delay.
    pub seed: u64,
    /// RAM in bytes, at least 64 MiB; above 2.75 GiB part of it lies above 4 GiB, as on a PC.
    pub memory: u64,
    /// Address width of the host in bits, as DMAR reports it.
    pub host_width: u8,
    /// The remapping units, in the order of the DMAR table. One that covers everything else must be its segment's last.
    pub units: Vec<UnitConfig>,
    /// Memory that firmware reserves, and for which function of the root bus (VT-d 8.4). It must lie in firmware's own
    /// memory: the last MiB below the hole.
    pub reserved: Vec<(SourceId, Extent)>,
    /// What every word of memory holds when the first kernel starts, but for firmware's tables. Few machines start with zeroes.
    pub residue: u64,
    /// What the capture stream brings.
    pub capture: Capture,
    /// The processor's x2APIC id, where firmware left it in x2APIC mode; otherwise it is in xAPIC mode and has id 0.
    pub x2apic_id: Option<u32>,
    /// Requesters beside the devices, on no list: they ask and ask.
    pub chatter: Vec<Habits>,
    /// Functions that can keep translations of their own; each then has PCI Express and ATS capabilities.
    pub ats: Vec<Ats>,
    /// Which of these ask for pages (PRI), and how often: while that is on, and not with too many open.
    pub page_requests: Vec<Habits>,
    /// What there is beside the devices of every machine.
    pub more: Vec<Extra>,
    /// Faults on demand.
    pub faults: Faults,
}

/// What the capture stream brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Capture {
    /// Silence, as QEMU brings without a host microphone.
    #[default]
    Zeros,
    /// The frame's number, counted from 1 since the machine was made, in the 32 bits of a frame.
    Counter,
}

/// One remapping unit.
#[derive(Debug, Clone)]
pub struct UnitConfig {
    /// Segment and register base.
    pub id: UnitId,
    /// Capabilities.
    pub cap: Cap,
    /// Extended capabilities.
    pub ecap: Ecap,
    /// Whose requests it translates.
    pub scope: Scope,
    /// Room for cached translations, and for cached non-leaf entries.
    pub cache_room: usize,
    /// What is cached at all.
    pub caching: Caching,
    /// Memory that firmware keeps DMA away from, by protected memory regions that it left on (VT-d 11.4.8).
    pub protected: Option<Protected>,
    /// How long it waits for a device to answer an invalidation, in nanoseconds.
    pub device_patience: u64,
    /// Where the unit is like QEMU's rather than like the manual.
    pub quirks: Quirks,
}

/// Protected memory: both ends at multiples of 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protected {
    /// Below 4 GiB.
    pub low: Extent,
    /// Anywhere.
    pub high: Extent,
}

/// Whose requests a unit translates (VT-d 8.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of its segment, by naming each function of the root bus, as QEMU does.
    Everything,
    /// Those named: endpoints, and bridges with everything behind them.
    Listed(Vec<SourceId>),
    /// All of its segment that no unit before it names (INCLUDE_PCI_ALL).
    Rest,
}

/// What a unit caches. The manual leaves all of this to the hardware (VT-d 6.2); the default caches as much as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caching {
    /// Entries that point to tables are cached, not leaves alone (VT-d 6.2.5).
    pub tables: bool,
    /// A translation serves every source of its domain, not only the one that brought it in.
    pub shared: bool,
    /// A translation is cached also when the request that brought it in had no permission.
    pub denied: bool,
    /// PASID entries are cached, not only those that say pass-through (VT-d 6.2.3); and context entries of scalable
    /// mode also when they lead to no usable PASID entry.
    pub pasids: bool,
    /// A page-selective invalidation looks at the low 8 bits of page numbers only, and forgets all that agree in these.
    pub coarse: bool,
}

impl Caching {
    /// As much as the manual allows.
    pub const ALL: Self = Self { tables: true, shared: true, denied: true, pasids: true, coarse: false };
    /// What QEMU caches: leaves that served a request, for its source.
    pub const QEMU: Self = Self { tables: false, shared: false, denied: false, pasids: false, coarse: false };
    /// What QEMU 7.2 caches, and forgets: its mask of page numbers is 8 bits wide.
    pub const QEMU_7_2: Self = Self { coarse: true, ..Self::QEMU };
}

impl Default for Caching {
    fn default() -> Self {
        Self::ALL
    }
}

/// Departures of QEMU's unit from the manual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quirks {
    /// The queue is switched off only when it is empty and its last descriptor was a wait.
    pub queue_ends_with_wait: bool,
    /// After an error was cleared the queue goes on only when its tail is written.
    pub tail_restarts_queue: bool,
    /// IQERCD reads zero.
    pub no_queue_record: bool,
    /// Fault records without PASID show ones in bits 119:104.
    pub pasid_leak: bool,
    /// A walk ends at the first entry without the permission that is asked for, even if that entry has reserved bits set or
    /// what follows could not be read. The manual does not say which of several faults comes first.
    pub permission_first: bool,
    /// Addresses that pass through may be wider than the unit's and the host's.
    pub pass_through_unchecked: bool,
    /// Reserved bits in PASID directories and PASID tables are ignored.
    pub pasid_reserved_ignored: bool,
    /// A fault that a table walk finds shows RID_PASID as if the request carried it.
    pub own_pasid_shown: bool,
    /// Reserved bits in one half of a root entry of scalable mode refuse requests that take the other half.
    pub root_halves_checked: bool,
    /// A PASID entry's type and widths are looked at before its present bit.
    pub pasid_present_last: bool,
    /// Whatever is wrong with PASID directory or PASID entry has one reason, that of an unreadable PASID table, and FPD
    /// does not keep it from being recorded.
    pub one_pasid_reason: bool,
    /// PASID entries for the first stage or both stages are taken for ones for the second stage.
    pub second_stage_only: bool,
    /// First-stage addresses are canonical or not by the second stage's address width (AW of the PASID entry).
    pub canonical_by_second: bool,
    /// RID_PASID is honoured without ECAP.RPS, where it is reserved, and not held against the size of the directory.
    pub rid_pasid_honoured: bool,
    /// The snoop bit of a second-stage leaf is ignored in scalable mode, where without ECAP.SC it is reserved.
    pub snoop_ignored: bool,
    /// A write to a first-stage page that a read had cached does not set the dirty bit, nor does any write where the
    /// accessed bit is set already; and the other way about.
    pub dirty_missed: bool,
    /// Root and context entries and the second stage have the reasons of legacy mode in scalable mode too.
    pub legacy_reasons: bool,
}

impl MachineConfig {
    /// Where memory below 4 GiB ends. The MiB before it is firmware's.
    #[must_use]
    pub fn low_end(&self) -> u64 {
        crate::machine::low_end(self.memory)
    }

    /// A machine like QEMU's q35 with one unit of `address_width` 39 or 48 bits and `memory` bytes of RAM.
    #[must_use]
    pub fn qemu_like(seed: u64, memory: u64, address_width: u8) -> Self {
        Self {
            seed,
            memory,
            host_width: address_width,
            units: vec![UnitConfig::qemu_like(address_width)],
            reserved: Vec::new(),
            residue: RESIDUE,
            capture: Capture::default(),
            x2apic_id: None,
            chatter: Vec::new(),
            ats: Vec::new(),
            page_requests: Vec::new(),
            more: Vec::new(),
            faults: Faults::default(),
        }
    }
}

impl UnitConfig {
    /// A unit like QEMU's, at 0xfed90000: one fault record, no coherent walks claimed, everything in scope. Unlike QEMU's, it
    /// means what ECAP.C = 0 says.
    #[must_use]
    pub fn qemu_like(address_width: u8) -> Self {
        let sagaw = if address_width >= 48 { 0b0110 } else { 0b0010 };
        let cap = Cap::from_raw(QEMU_CAP).with_sagaw(sagaw).with_mgaw(u64::from(address_width) - 1);
        Self {
            id: UnitId { segment: Segment(0), register_base: 0xfed9_0000 },
            cap,
            ecap: Ecap::from_raw(QEMU_ECAP),
            scope: Scope::Everything,
            cache_room: 4096,
            caching: Caching::ALL,
            protected: None,
            device_patience: 20_000_000,
            quirks: Quirks {
                queue_ends_with_wait: true,
                tail_restarts_queue: true,
                no_queue_record: true,
                pasid_leak: true,
                permission_first: true,
                pass_through_unchecked: true,
                pasid_reserved_ignored: true,
                own_pasid_shown: true,
                root_halves_checked: true,
                pasid_present_last: true,
                canonical_by_second: true,
                one_pasid_reason: false,
                second_stage_only: false,
                rid_pasid_honoured: true,
                snoop_ignored: true,
                dirty_missed: true,
                legacy_reasons: true,
            },
        }
    }

    /// A unit that keeps to the manual: coherent walks, eight fault records, protected memory.
    #[must_use]
    pub fn plain(register_base: u64, address_width: u8) -> Self {
        let mut unit = Self::qemu_like(address_width);
        unit.id.register_base = register_base;
        unit.cap = unit.cap.with_nfr(7).with_plmr(true).with_phmr(true);
        unit.ecap = unit.ecap.with_c(true);
        unit.quirks = Quirks::default();
        unit
    }

    /// The unit with scalable mode: PASIDs of 20 bits, both stages and nesting, RID_PASID, first-stage leaves of 1 GiB.
    #[must_use]
    pub fn with_scalable_mode(self) -> Self {
        self.with_ecap(|e| {
            let stages = e.with_smts(true).with_ssts(true).with_fsts(true).with_nest(true);
            stages.with_pasid(true).with_pss(19).with_rps(true)
        })
        .with_cap(|c| c.with_fs1gp(true))
    }

    /// The unit with tables of 5 levels in both stages, for addresses of 57 bits.
    #[must_use]
    pub fn with_five_levels(self) -> Self {
        self.with_cap(|c| c.with_sagaw(c.sagaw() | 0b1000).with_mgaw(56).with_fs5lp(true))
    }

    /// The unit with device-TLBs.
    #[must_use]
    pub fn with_device_tlbs(self) -> Self {
        self.with_ecap(|e| e.with_dt(true))
    }

    /// The unit with page requests, as far as it has device-TLBs and scalable mode.
    #[must_use]
    pub fn with_page_requests(self) -> Self {
        self.with_ecap(|e| e.with_prs(true).with_pds(true))
    }

    /// The unit, translating for these alone.
    #[must_use]
    pub fn for_sources(mut self, sources: &[SourceId]) -> Self {
        self.scope = Scope::Listed(sources.to_vec());
        self
    }

    /// The unit without an invalidation queue.
    #[must_use]
    pub fn without_queue(mut self) -> Self {
        self.ecap = self.ecap.with_qi(false).with_ir(false);
        self
    }

    /// The unit with protected memory that firmware left on.
    #[must_use]
    pub fn protecting(mut self, low: Extent, high: Extent) -> Self {
        self.cap = self.cap.with_plmr(true).with_phmr(true);
        self.protected = Some(Protected { low, high });
        self
    }

    /// The unit with this number of fault records, 1 to 220.
    ///
    /// # Panics
    /// Outside that range: the records would leave the register page.
    #[must_use]
    pub fn with_fault_records(mut self, count: u64) -> Self {
        assert!((1..=220).contains(&count), "a unit has 1 to 220 fault records here");
        self.cap = self.cap.with_nfr(count - 1);
        self
    }

    /// The unit with other capabilities.
    #[must_use]
    pub fn with_cap(mut self, change: impl FnOnce(Cap) -> Cap) -> Self {
        self.cap = change(self.cap);
        self
    }

    /// The unit with other extended capabilities.
    #[must_use]
    pub fn with_ecap(mut self, change: impl FnOnce(Ecap) -> Ecap) -> Self {
        self.ecap = change(self.ecap);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_show_the_capabilities_that_were_measured_on_qemu() {
        assert_eq!(UnitConfig::qemu_like(39).cap.raw(), 0x00d2_008c_2226_0206);
        assert_eq!(UnitConfig::qemu_like(48).cap.raw(), 0x00d2_008c_222f_0606);
        assert_eq!(UnitConfig::qemu_like(48).ecap.raw(), 0x0000_0000_00f0_0f4a);
        assert_eq!(UnitConfig::qemu_like(48).with_cap(|c| c.with_cm(true)).cap.raw(), 0x00d2_008c_222f_0686);
    }
}
