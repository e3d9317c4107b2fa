//! Every register at a fixed offset, by name: for dumps and for finding out what an access meant.

use super::offset;

/// A register at a fixed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// Its name in the manual.
    pub name: &'static str,
    /// Byte offset from the unit's register base.
    pub offset: u64,
    /// Width in bits: 32 or 64.
    pub bits: u32,
}

macro_rules! registers {
    ($($bits:literal: $($name:ident)*;)*) => {
        &[$($(Register { name: stringify!($name), offset: offset::$name, bits: $bits },)*)*]
    };
}

/// The registers at fixed offsets, but for the memory type ranges, which are [`offset::MTRR_FIXED`] and
/// [`offset::MTRR_VARIABLE`]. IVA, IOTLB and the fault records lie where CAP and ECAP say.
pub const REGISTERS: &[Register] = registers! {
    32: VER GCMD GSTS FSTS FECTL FEDATA FEADDR FEUADDR PMEN PLMBASE PLMLIMIT ICS;
    32: IECTL IEDATA IEADDR IEUADDR PRS PECTL PEDATA PEADDR PEUADDR;
    32: PERFCFGOFF PERFOVFOFF PERFCNTROFF PERFINTRSTS PERFINTRCTL;
    64: CAP ECAP RTADDR CCMD AFLOG PHMBASE PHMLIMIT IQH IQT IQA IQERCD IRTA PQH PQT PQA;
    64: MTRRCAP MTRRDEF PERFCAP PERFEVNTCAP ECMD ECEO ECRSP ECCAP VCMD VCRSP VCCAP;
};
