//! Registers of a remapping unit (VT-d 11.4): offsets and contents.

mod code;
mod event;
mod list;
mod more;

pub use code::{
    address_type, device_granularity, function_mask, iotlb_granularity, queue_error, queue_width, table_mode,
};
pub use event::{EventAddress, EventControl, EventData, EventUpperAddress};
pub use list::{REGISTERS, Register};
pub use more::{
    AdvancedFaultLog, EnhancedCommand, EnhancedCommandCap3, EnhancedResponse, Ics, Iqh, Iqt, MtrrCap,
    MtrrDefault, PerfCap, PerfEventCap, PerfInterruptStatus, Pqa, Pqh, Pqt, Prs, enhanced_command,
};

use crate::{PhysAddr, SourceId};

/// Byte offsets from the unit's register base.
pub mod offset {
    /// Version (11.4.1), 32 bits.
    pub const VER: u64 = 0x00;
    /// Capability (11.4.2), 64 bits.
    pub const CAP: u64 = 0x08;
    /// Extended capability (11.4.3), 64 bits.
    pub const ECAP: u64 = 0x10;
    /// Global command (11.4.4), 32 bits, write only.
    pub const GCMD: u64 = 0x18;
    /// Global status (11.4.4), 32 bits, read only.
    pub const GSTS: u64 = 0x1c;
    /// Root table address (11.4.5), 64 bits.
    pub const RTADDR: u64 = 0x20;
    /// Context command (11.4.6), 64 bits.
    pub const CCMD: u64 = 0x28;
    /// Fault status (11.4.7), 32 bits.
    pub const FSTS: u64 = 0x34;
    /// Fault event control (11.4.7), 32 bits.
    pub const FECTL: u64 = 0x38;
    /// Fault event data (11.4.7), 32 bits.
    pub const FEDATA: u64 = 0x3c;
    /// Fault event address (11.4.7), 32 bits.
    pub const FEADDR: u64 = 0x40;
    /// Fault event upper address (11.4.7), 32 bits.
    pub const FEUADDR: u64 = 0x44;
    /// Advanced fault log (11.4.7), 64 bits.
    pub const AFLOG: u64 = 0x58;
    /// Protected memory enable (11.4.8), 32 bits.
    pub const PMEN: u64 = 0x64;
    /// Protected low memory base (11.4.8), 32 bits.
    pub const PLMBASE: u64 = 0x68;
    /// Protected low memory limit (11.4.8), 32 bits.
    pub const PLMLIMIT: u64 = 0x6c;
    /// Protected high memory base (11.4.8), 64 bits.
    pub const PHMBASE: u64 = 0x70;
    /// Protected high memory limit (11.4.8), 64 bits.
    pub const PHMLIMIT: u64 = 0x78;
    /// Invalidation queue head (11.4.9), 64 bits.
    pub const IQH: u64 = 0x80;
    /// Invalidation queue tail (11.4.9), 64 bits.
    pub const IQT: u64 = 0x88;
    /// Invalidation queue address (11.4.9), 64 bits.
    pub const IQA: u64 = 0x90;
    /// Invalidation completion status (11.4.9), 32 bits.
    pub const ICS: u64 = 0x9c;
    /// Invalidation event control (11.4.9), 32 bits.
    pub const IECTL: u64 = 0xa0;
    /// Invalidation event data (11.4.9), 32 bits.
    pub const IEDATA: u64 = 0xa4;
    /// Invalidation event address (11.4.9), 32 bits.
    pub const IEADDR: u64 = 0xa8;
    /// Invalidation event upper address (11.4.9), 32 bits.
    pub const IEUADDR: u64 = 0xac;
    /// Invalidation queue error record (11.4.9), 64 bits.
    pub const IQERCD: u64 = 0xb0;
    /// Interrupt remapping table address (11.4.10), 64 bits.
    pub const IRTA: u64 = 0xb8;
    /// Page request queue head (11.4.11), 64 bits.
    pub const PQH: u64 = 0xc0;
    /// Page request queue tail (11.4.11), 64 bits.
    pub const PQT: u64 = 0xc8;
    /// Page request queue address (11.4.11), 64 bits.
    pub const PQA: u64 = 0xd0;
    /// Page request status (11.4.11), 32 bits.
    pub const PRS: u64 = 0xdc;
    /// Page request event control (11.4.11), 32 bits.
    pub const PECTL: u64 = 0xe0;
    /// Page request event data (11.4.11), 32 bits.
    pub const PEDATA: u64 = 0xe4;
    /// Page request event address (11.4.11), 32 bits.
    pub const PEADDR: u64 = 0xe8;
    /// Page request event upper address (11.4.11), 32 bits.
    pub const PEUADDR: u64 = 0xec;
    /// Memory type range capability (11.4.12), 64 bits.
    pub const MTRRCAP: u64 = 0x100;
    /// Default memory type (11.4.12), 64 bits.
    pub const MTRRDEF: u64 = 0x108;
    /// Fixed memory type ranges (11.4.12), 64 bits each: one of 64 KiB steps, two of 16 KiB, eight of 4 KiB.
    pub const MTRR_FIXED: [u64; 11] =
        [0x120, 0x128, 0x130, 0x138, 0x140, 0x148, 0x150, 0x158, 0x160, 0x168, 0x170];
    /// Variable memory type ranges (11.4.12): base of range 0, 64 bits. Its mask follows at +8, the next range at +16.
    pub const MTRR_VARIABLE: u64 = 0x180;
    /// Performance monitoring capability (11.4.13), 64 bits.
    pub const PERFCAP: u64 = 0x300;
    /// Where the performance configuration registers start (11.4.13), 32 bits.
    pub const PERFCFGOFF: u64 = 0x310;
    /// Where the performance overflow registers start (11.4.13), 32 bits.
    pub const PERFOVFOFF: u64 = 0x318;
    /// Where the performance counters start (11.4.13), 32 bits.
    pub const PERFCNTROFF: u64 = 0x31c;
    /// Performance interrupt status (11.4.13), 32 bits.
    pub const PERFINTRSTS: u64 = 0x324;
    /// Performance interrupt control (11.4.13), 32 bits.
    pub const PERFINTRCTL: u64 = 0x328;
    /// Performance event capability (11.4.13), 64 bits.
    pub const PERFEVNTCAP: u64 = 0x380;
    /// Enhanced command (11.4.14), 64 bits.
    pub const ECMD: u64 = 0x400;
    /// Operand of an enhanced command (11.4.14), 64 bits.
    pub const ECEO: u64 = 0x408;
    /// Response to an enhanced command (11.4.14), 64 bits.
    pub const ECRSP: u64 = 0x410;
    /// First of the enhanced command capabilities (11.4.14), 64 bits.
    pub const ECCAP: u64 = 0x430;
    /// Virtual command (11.4.15), 64 bits. Another layout of the three is in use as well: not to be relied on.
    pub const VCMD: u64 = 0xe00;
    /// Response to a virtual command (11.4.15), 64 bits; see [`VCMD`].
    pub const VCRSP: u64 = 0xe10;
    /// Virtual command capability (11.4.15), 64 bits; see [`VCMD`].
    pub const VCCAP: u64 = 0xe30;
}

bitfields! {
    /// Version (VT-d 11.4.1).
    pub struct Version(u32) {
        /// Minor version.
        [3:0] min, with_min;
        /// Major version.
        [7:4] max, with_max;
    }
}

bitfields! {
    /// Capability (VT-d 11.4.2).
    pub struct Cap(u64) {
        /// Number of domain ids: `2^(4 + 2*nd)`.
        [2:0] nd, with_nd;
        /// Advanced fault logging.
        [3] afl, with_afl;
        /// Write buffers must be flushed explicitly.
        [4] rwbf, with_rwbf;
        /// Protected low memory region.
        [5] plmr, with_plmr;
        /// Protected high memory region.
        [6] phmr, with_phmr;
        /// Caching mode: not-present entries may be cached too.
        [7] cm, with_cm;
        /// Widths that second-stage tables may have: bit 1 three levels, bit 2 four, bit 3 five.
        [12:8] sagaw, with_sagaw;
        /// Highest address width of a request, less one.
        [21:16] mgaw, with_mgaw;
        /// Zero-length reads are served.
        [22] zlr, with_zlr;
        /// Offset of the fault records, in units of 16 bytes.
        [33:24] fro, with_fro;
        /// Large second-stage leaves: bit 0 2 MiB, bit 1 1 GiB.
        [37:34] sslps, with_sslps;
        /// Page-selective invalidation.
        [39] psi, with_psi;
        /// Number of fault records, less one.
        [47:40] nfr, with_nfr;
        /// Largest address mask of a page-selective invalidation.
        [53:48] mamv, with_mamv;
        /// Write draining.
        [54] dwd, with_dwd;
        /// Read draining.
        [55] drd, with_drd;
        /// 1 GiB leaves in the first stage.
        [56] fs1gp, with_fs1gp;
        /// Posted interrupts.
        [59] pi, with_pi;
        /// Five levels in the first stage.
        [60] fs5lp, with_fs5lp;
        /// Enhanced commands.
        [61] ecmds, with_ecmds;
        /// Setting the interrupt table pointer invalidates by itself.
        [62] esirtps, with_esirtps;
        /// Setting the root table pointer invalidates by itself.
        [63] esrtps, with_esrtps;
    }
}

impl Cap {
    /// How many domain ids the unit tells apart.
    #[must_use]
    pub const fn domain_ids(self) -> u32 {
        1 << (4 + 2 * self.nd())
    }
    /// Offset of fault record `i` from the register base, in bytes.
    #[must_use]
    pub const fn fault_record_offset(self, i: u64) -> u64 {
        16 * self.fro() + 16 * i
    }
    /// Number of fault records.
    #[must_use]
    pub const fn fault_records(self) -> u64 {
        self.nfr() + 1
    }
    /// Whether second-stage tables may have `levels` levels (3, 4 or 5).
    #[must_use]
    pub const fn supports_levels(self, levels: u8) -> bool {
        levels >= 2 && levels <= 6 && self.sagaw() >> (levels - 2) & 1 == 1
    }
}

bitfields! {
    /// Extended capability (VT-d 11.4.3).
    pub struct Ecap(u64) {
        /// Table walks are coherent with the processor's caches.
        [0] c, with_c;
        /// Queued invalidation.
        [1] qi, with_qi;
        /// Device-TLBs.
        [2] dt, with_dt;
        /// Interrupt remapping.
        [3] ir, with_ir;
        /// Extended interrupt mode (32-bit destinations).
        [4] eim, with_eim;
        /// Pass-through.
        [6] pt, with_pt;
        /// Snoop control.
        [7] sc, with_sc;
        /// Offset of the IOTLB registers, in units of 16 bytes.
        [17:8] iro, with_iro;
        /// Largest mask of an interrupt entry invalidation.
        [23:20] mhmv, with_mhmv;
        /// Memory types.
        [25] mts, with_mts;
        /// Nested translation.
        [26] nest, with_nest;
        /// Page requests.
        [29] prs, with_prs;
        /// Execute requests.
        [30] ers, with_ers;
        /// Supervisor requests.
        [31] srs, with_srs;
        /// No write flag.
        [33] nwfs, with_nwfs;
        /// Extended accessed flag.
        [34] eafs, with_eafs;
        /// Width of a PASID, less one.
        [39:35] pss, with_pss;
        /// Requests with PASID.
        [40] pasid, with_pasid;
        /// Device-TLB invalidation throttle.
        [41] dit, with_dit;
        /// Page-request drain.
        [42] pds, with_pds;
        /// Scalable mode.
        [43] smts, with_smts;
        /// Virtual command interface.
        [44] vcs, with_vcs;
        /// Accessed and dirty bits in the second stage.
        [45] ssads, with_ssads;
        /// Second-stage translation in scalable mode.
        [46] ssts, with_ssts;
        /// First-stage translation in scalable mode.
        [47] fsts, with_fsts;
        /// Page-walk snoop control in scalable mode.
        [48] smpwcs, with_smpwcs;
        /// RID_PASID is honoured.
        [49] rps, with_rps;
        /// Performance monitoring.
        [51] pms, with_pms;
        /// Abort-DMA mode.
        [52] adms, with_adms;
        /// RID_PRIV is honoured.
        [53] rprivs, with_rprivs;
        /// Stop marker.
        [58] sms, with_sms;
    }
}

impl Ecap {
    /// Offset of the IVA register from the register base, in bytes; the IOTLB register follows at +8.
    #[must_use]
    pub const fn iva_offset(self) -> u64 {
        16 * self.iro()
    }
    /// Offset of the IOTLB invalidate register from the register base, in bytes.
    #[must_use]
    pub const fn iotlb_offset(self) -> u64 {
        16 * self.iro() + 8
    }
}

bitfields! {
    /// Global command (VT-d 11.4.4). Write only: start from [`Gsts::as_command`], change one bit, write.
    pub struct Gcmd(u32) {
        /// Compatibility format interrupts pass.
        [23] cfi, with_cfi;
        /// Set interrupt remap table pointer (one-shot).
        [24] sirtp, with_sirtp;
        /// Interrupt remapping enable.
        [25] ire, with_ire;
        /// Queued invalidation enable.
        [26] qie, with_qie;
        /// Write buffer flush (one-shot).
        [27] wbf, with_wbf;
        /// Enable advanced fault logging.
        [28] eafl, with_eafl;
        /// Set fault log (one-shot).
        [29] sfl, with_sfl;
        /// Set root table pointer (one-shot).
        [30] srtp, with_srtp;
        /// Translation enable.
        [31] te, with_te;
    }
}

bitfields! {
    /// Global status (VT-d 11.4.4).
    pub struct Gsts(u32) {
        /// Compatibility format interrupts pass.
        [23] cfis, with_cfis;
        /// Interrupt remap table pointer was set.
        [24] irtps, with_irtps;
        /// Interrupt remapping is on.
        [25] ires, with_ires;
        /// Queued invalidation is on.
        [26] qies, with_qies;
        /// A write buffer flush is under way.
        [27] wbfs, with_wbfs;
        /// Advanced fault logging is on.
        [28] afls, with_afls;
        /// The fault log was set.
        [29] fls, with_fls;
        /// The root table pointer was set.
        [30] rtps, with_rtps;
        /// Translation is on.
        [31] tes, with_tes;
    }
}

impl Gsts {
    /// The bits that [`as_command`](Self::as_command) keeps: all but the status of one-shot commands.
    pub const COMMAND_MASK: u32 = 0x96ff_ffff;
    /// The command that leaves everything as it is: the status without its one-shot bits 24, 27, 29 and 30.
    #[must_use]
    pub const fn as_command(self) -> Gcmd {
        Gcmd::from_raw(self.raw() & Self::COMMAND_MASK)
    }
}

bitfields! {
    /// Root table address (VT-d 11.4.5). Takes effect through GCMD.SRTP only.
    pub struct RootAddr(u64) {
        /// Translation table mode: 0 legacy, 1 scalable, 3 abort-DMA.
        [11:10] ttm, with_ttm;
        /// Frame of the root table.
        [63:12] rta, with_rta;
    }
}

impl RootAddr {
    /// Address of the root table.
    #[must_use]
    pub const fn table(self) -> PhysAddr {
        PhysAddr::new(self.rta() << 12)
    }
}

bitfields! {
    /// Context command (VT-d 11.4.6): register-based invalidation of the context cache.
    pub struct Ccmd(u64) {
        /// Domain id.
        [15:0] did, with_did;
        /// Source id.
        [31:16] sid, with_sid;
        /// Function mask.
        [33:32] fm, with_fm;
        /// Granularity that was performed: 1 global, 2 domain, 3 device.
        [60:59] caig, with_caig;
        /// Granularity asked for: 1 global, 2 domain, 3 device.
        [62:61] cirg, with_cirg;
        /// Write 1 to start; reads 1 until done.
        [63] icc, with_icc;
    }
}

bitfields! {
    /// Invalidate address (VT-d 11.4.6.4), at `16*ECAP.IRO`.
    pub struct Iva(u64) {
        /// Address mask: `2^am` pages.
        [5:0] am, with_am;
        /// Leaf entries only: caches of non-leaf entries may stay.
        [6] ih, with_ih;
        /// Page number.
        [63:12] addr, with_addr;
    }
}

bitfields! {
    /// IOTLB invalidate (VT-d 11.4.6.3), at `16*ECAP.IRO + 8`.
    pub struct IotlbCommand(u64) {
        /// Domain id.
        [47:32] did, with_did;
        /// Drain writes.
        [48] dw, with_dw;
        /// Drain reads.
        [49] dr, with_dr;
        /// Granularity that was performed: 1 global, 2 domain, 3 page.
        [58:57] iaig, with_iaig;
        /// Granularity asked for: 1 global, 2 domain, 3 page.
        [61:60] iirg, with_iirg;
        /// Write 1 to start; reads 1 until done.
        [63] ivt, with_ivt;
    }
}

bitfields! {
    /// Fault status (VT-d 11.4.7.1). Bits 0 and 2 to 7 are cleared by writing 1.
    pub struct Fsts(u32) {
        /// Primary fault overflow: faults were lost.
        [0] pfo, with_pfo;
        /// Primary pending fault: a record holds a fault.
        [1] ppf, with_ppf;
        /// Advanced fault overflow.
        [2] afo, with_afo;
        /// Advanced pending fault.
        [3] apf, with_apf;
        /// Invalidation queue error.
        [4] iqe, with_iqe;
        /// Invalidation completion error (device-TLB).
        [5] ice, with_ice;
        /// Invalidation time-out error (device-TLB).
        [6] ite, with_ite;
        /// Page request overflow; reserved in newer revisions.
        [7] pro, with_pro;
        /// Index of the first record with a pending fault.
        [15:8] fri, with_fri;
    }
}

bitfields! {
    /// Fault event control (VT-d 11.4.7.2).
    pub struct Fectl(u32) {
        /// Interrupt pending.
        [30] ip, with_ip;
        /// Interrupt mask; 1 after reset.
        [31] im, with_im;
    }
}

bitfields! {
    /// One primary fault record (VT-d 11.4.7.6).
    pub struct FaultRecord([u64; 2]) {
        /// Page number of the faulted request (or, for interrupt faults, the index in its bits 63:48).
        [63:12] fi, with_fi;
        /// Source id.
        [79:64] sid, with_sid;
        /// Second type bit.
        [92] t2, with_t2;
        /// Privileged.
        [93] privileged, with_privileged;
        /// Execute.
        [94] exe, with_exe;
        /// PASID present.
        [95] pp, with_pp;
        /// Fault reason, see [`crate::fault::Reason`].
        [103:96] fr, with_fr;
        /// PASID value; meaningful with `pp` only.
        [123:104] pv, with_pv;
        /// Address type.
        [125:124] at, with_at;
        /// First type bit: 1 for a read.
        [126] t1, with_t1;
        /// The record holds a fault; write 1 to clear.
        [127] f, with_f;
    }
}

/// What a request wanted (VT-d 11.4.7.6, bits T1 and T2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// To write.
    Write,
    /// A page, by a page request.
    Page,
    /// To read.
    Read,
    /// To read and write at once.
    Atomic,
}

impl FaultRecord {
    /// Who asked.
    #[must_use]
    pub const fn source(self) -> SourceId {
        SourceId::from_raw(self.sid() as u16)
    }
    /// Address of the page that was asked for.
    #[must_use]
    pub const fn page(self) -> u64 {
        self.fi() << 12
    }
    /// Index of the interrupt that was asked for, when `fr` is one of interrupt remapping.
    #[must_use]
    pub const fn interrupt_index(self) -> u16 {
        (self.page() >> 48) as u16
    }
    /// What the request wanted.
    #[must_use]
    pub const fn request(self) -> RequestKind {
        match (self.t1(), self.t2()) {
            (false, false) => RequestKind::Write,
            (false, true) => RequestKind::Page,
            (true, false) => RequestKind::Read,
            (true, true) => RequestKind::Atomic,
        }
    }
}

bitfields! {
    /// Protected memory enable (VT-d 11.4.8.1).
    pub struct Pmen(u32) {
        /// Protected region status (read only).
        [0] prs, with_prs;
        /// Enable protected memory.
        [31] epm, with_epm;
    }
}

bitfields! {
    /// Invalidation queue address (VT-d 11.4.9.3).
    pub struct Iqa(u64) {
        /// Size: `2^qs` frames.
        [2:0] qs, with_qs;
        /// Descriptor width: 0 128 bits, 1 256 bits.
        [11] dw, with_dw;
        /// Frame of the queue.
        [63:12] iqa, with_iqa;
    }
}

bitfields! {
    /// Invalidation queue error record (VT-d 11.4.9.9).
    pub struct Iqercd(u64) {
        /// What was wrong with the queue.
        [3:0] iqei, with_iqei;
        /// Source id of the invalidation that timed out.
        [47:32] itesid, with_itesid;
        /// Source id of the completion error.
        [63:48] icesid, with_icesid;
    }
}

bitfields! {
    /// Interrupt remapping table address (VT-d 11.4.10.1).
    pub struct Irta(u64) {
        /// Size: `2^(s+1)` entries.
        [3:0] s, with_s;
        /// Extended interrupt mode.
        [11] eime, with_eime;
        /// Frame of the table.
        [63:12] irta, with_irta;
    }
}

impl Irta {
    /// Where the table lies.
    #[must_use]
    pub const fn table(self) -> crate::PhysAddr {
        crate::PhysAddr::new(self.irta() << 12)
    }
    /// Number of entries: 2 to 65536.
    #[must_use]
    pub const fn entries(self) -> u32 {
        2 << self.s()
    }
    /// The frames that hold the table, the last one perhaps in part. `None` when they leave the address space.
    #[must_use]
    pub fn frames(self) -> Option<crate::Extent> {
        let bytes = self.entries() as u64 * crate::interrupt::ENTRY_BYTES;
        crate::Extent::new(self.table().frame(), bytes.div_ceil(crate::PAGE_SIZE))
    }
}
