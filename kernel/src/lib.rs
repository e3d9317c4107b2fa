//! A freestanding kernel for QEMU q35 that replaces itself while devices go on with their DMA.
//!
//! One source gives three releases (`src/bin`), each with an address of its own. The first is booted by QEMU ([`pvh`]),
//! the others by their predecessor ([`bootparam`], [`successor`]). Either way [`boot`] takes over what there is to know,
//! builds page tables and exception handling ([`hw`]) and hands a [`hardware::Hardware`] to the scenario, which is the
//! same code that runs on the built-in machine.
//!
//! Everything that decides about foreign bytes is plain code without `unsafe`, tested on the host: [`bundle`],
//! [`bootparam`], [`image`], [`pvh`], [`memory`], [`frames`], [`paging`], [`cmdline`].
#![no_std]

extern crate alloc;

pub mod boot;
pub mod bootparam;
pub mod bundle;
pub mod cmdline;
pub mod frames;
pub mod hardware;
pub mod hw;
pub mod image;
pub mod layout;
pub mod memory;
pub mod paging;
pub mod pvh;
pub mod story;
pub mod successor;
