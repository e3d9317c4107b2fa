//! The same in scalable mode: both halves of a bus, PASID directories and tables, both stages and one below the other.

mod adoption;
mod all_or_nothing;
mod blocked;
mod continuity;
mod cut_off;
mod device_tlb;
mod drift;
mod finish;
mod foreign;
mod order;
mod page_requests;
mod refusals;
mod shared;
mod units;
