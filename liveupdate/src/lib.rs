//! Preserve, freeze, cut off, jump, open, adopt: IOMMU state across a change of kernel.
//!
//! The core works on the hardware's own tables through the host traits of [`host`]; it has no idea of any driver's
//! structures, owns no global, never allocates, and keeps what it knows in storage that the host gives it.
//!
//! ```text
//!   outgoing kernel                                        incoming kernel
//!   Outgoing --preserve...--> Outgoing                     open --> Opened --check--> Checked --adopt--> Incoming
//!            --freeze--> Sealed --cut_off--> CutOff ==jump==>                           retrieve..., finish
//! ```
//!
//! Units in legacy and in scalable mode are carried alike: [`Mode`] says what differs. A requester in scalable mode brings its
//! PASID directory and the PASID of its requests without PASID; the others are preserved one by one, and those that are not
//! are cut off although their requester goes on.
//!
//! Each arrow consumes what it starts from: there is no `cut_off` without a seal, no jump without a cut-off, no adoption
//! of a handover that was not opened and checked. A failed `freeze` hands the [`Outgoing`] back.
//!
//! Without the feature `update` only [`host`] is left: a driver built so has nothing of the update in it, and a shutdown
//! is a shutdown.
#![no_std]
#![forbid(unsafe_code)]

mod able;
pub mod host;

#[cfg(feature = "update")]
mod update {
    pub use crate::adopt::{AdoptEvent, CheckError, Checked};
    pub use crate::adoptable::NotAdoptable;
    pub use crate::block::block_all;
    pub use crate::book::{
        AliasOf, Attached, ContextRun, Domain, Kept, KeptUnit, PasidRun, Region, RegionKind, Stage, Storage,
        TableRun, Token,
    };
    pub use crate::cutoff::CutOff;
    pub use crate::error::{FreezeError, Full, PreserveError, UnpreserveError};
    pub use crate::freeze::{Container, FreezeInput, MAX_SCRATCH, MAX_UNITS, NotFrozen, Sealed};
    pub use crate::mode::{Context, Mode};
    pub use crate::open::{OpenError, Opened, Part, open};
    pub use crate::outgoing::{DomainTablesOf, Outgoing, Totals};
    pub use crate::prune::CutOffEvent;
    pub use crate::radix::{MapError, for_each_preserved};
    pub use crate::requester::MAX_ALIASES;
    pub use crate::reserved::ReservedMemory;
    pub use crate::retrieve::{Incoming, RetrieveError, RetrievedDomain, RetrievedPasid, RetrievedRequester};
    pub use crate::room::Room;
}
#[cfg(feature = "update")]
pub use update::*;

#[cfg(feature = "update")]
mod adopt;
#[cfg(feature = "update")]
mod adoptable;
#[cfg(feature = "update")]
mod block;
#[cfg(feature = "update")]
mod book;
#[cfg(feature = "update")]
mod cutoff;
#[cfg(feature = "update")]
mod device_tlb;
#[cfg(feature = "update")]
mod digest;
#[cfg(feature = "update")]
mod error;
#[cfg(feature = "update")]
mod finish;
#[cfg(feature = "update")]
mod freeze;
#[cfg(feature = "update")]
mod guard;
#[cfg(feature = "update")]
mod interrupts;
#[cfg(feature = "update")]
mod list;
#[cfg(feature = "update")]
mod mode;
#[cfg(feature = "update")]
pub mod mutant;
#[cfg(feature = "update")]
mod open;
#[cfg(feature = "update")]
mod outgoing;
#[cfg(feature = "update")]
mod page_requests;
#[cfg(feature = "update")]
mod pasids;
#[cfg(feature = "update")]
mod pool;
#[cfg(feature = "update")]
mod prune;
#[cfg(feature = "update")]
mod prune_pasids;
#[cfg(feature = "update")]
mod radix;
#[cfg(feature = "update")]
mod rate;
#[cfg(feature = "update")]
mod requester;
#[cfg(feature = "update")]
mod reserved;
#[cfg(feature = "update")]
mod retrieve;
#[cfg(feature = "update")]
mod room;
#[cfg(feature = "update")]
mod roots;
#[cfg(feature = "update")]
mod staged;
#[cfg(feature = "update")]
mod walk;
#[cfg(feature = "update")]
mod wire;
