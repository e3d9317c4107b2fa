//! What is computed from fields: addresses, counts and indices.

use holdover_spec::context::ContextEntry;
use holdover_spec::first_stage::{self, FirstStageEntry};
use holdover_spec::interrupt::{IoApicEntry, PostedEntry, RemappableAddress, RemappedEntry};
use holdover_spec::regs::{Cap, Gsts, RootAddr};
use holdover_spec::root::RootEntry;
use holdover_spec::scalable::{PasidDirectoryEntry, PasidEntry, ScalableContextEntry};
use holdover_spec::second_stage::{self, SecondStageEntry};
use holdover_spec::{DomainId, PhysAddr};

/// An address with a different digit in every place, on a page's start.
const PAGE: PhysAddr = PhysAddr::new(0x0fed_cba9_8765_4000);

#[test]
fn table_pointers_are_the_upper_bits_of_their_word() {
    let word = PAGE.get() | 0xfff;
    assert_eq!(RootAddr::from_raw(word).table(), PAGE);
    assert_eq!(RootEntry::from_raw([word, !0]).context_table(), PAGE);
    assert_eq!(ContextEntry::from_raw([word, !0]).top_table(), PAGE);
    assert_eq!(ScalableContextEntry::from_raw([word, !0, !0, !0]).directory(), PAGE);
    assert_eq!(PasidDirectoryEntry::from_raw(word).table(), PAGE);
    let mut pasid = [!0; 8];
    (pasid[0], pasid[2]) = (word, (PAGE.get() + 0x1000) | 0xfff);
    assert_eq!(PasidEntry::from_raw(pasid).second_stage_table(), PAGE);
    assert_eq!(PasidEntry::from_raw(pasid).first_stage_table(), PAGE.plus(0x1000));
}

#[test]
fn a_leaf_points_to_its_first_byte_whatever_its_attributes_are() {
    let address = PhysAddr::new(0x000d_cba9_8765_4000);
    let word = 0xfff0_0000_0000_0fff | address.get();
    assert_eq!(SecondStageEntry::from_raw(word).address(), address);
    let first = FirstStageEntry::from_raw(word | 1 << 12);
    assert_eq!(first.address(1), PhysAddr::new(0x000d_cba9_8760_0000));
    assert_eq!(first.address(2), PhysAddr::new(0x000d_cba9_8000_0000));
    assert_eq!(first.with_ps(false).address(1), address.plus(0x1000), "a table has no attribute at bit 12");
}

#[test]
fn a_reserved_bit_of_a_narrow_platform_is_told() {
    let first = |level| first_stage::reserved(FirstStageEntry::ZERO, level, 46);
    assert_eq!(first(0), 0x000f_c000_0000_0000);
    assert_eq!(first(3), 0x000f_c000_0000_0080);
    let second = |level, snoop| second_stage::reserved(SecondStageEntry::ZERO, level, 46, snoop);
    assert_eq!(second(0, true), 0x400f_c000_0000_0000);
    assert_eq!(second(0, false), 0x400f_c000_0000_0800);
    assert_eq!(second(3, true), 0x400f_c000_0000_0880);
}

#[test]
fn sizes_and_ids_come_out_as_numbers() {
    assert_eq!(ScalableContextEntry::ZERO.with_pdts(7).directory_entries(), 16384);
    assert_eq!(ScalableContextEntry::ZERO.directory_entries(), 128);
    assert_eq!(PasidEntry::ZERO.with_did(0x1234).domain_id(), DomainId(0x1234));
    assert_eq!(ContextEntry::ZERO.with_did(0x1234).domain_id(), DomainId(0x1234));
    assert_eq!(Cap::ZERO.with_nd(6).domain_ids(), 65536);
    assert_eq!(Cap::ZERO.with_nfr(255).fault_records(), 256);
    let three_and_four = Cap::ZERO.with_sagaw(0b0110);
    assert_eq!(
        [2, 3, 4, 5, 6].map(|levels| three_and_four.supports_levels(levels)),
        [false, true, true, false, false]
    );
}

#[test]
fn a_command_made_of_the_status_repeats_no_one_shot() {
    assert_eq!(Gsts::from_raw(!0).as_command().raw(), !(1 << 30 | 1 << 29 | 1 << 27 | 1 << 24));
}

#[test]
fn an_interrupt_entry_says_where_and_who() {
    let posted = PostedEntry::ZERO.with_pda_high(0x0123_4567).with_pda_low(0x89ab_cdc0 >> 6);
    assert_eq!(posted.descriptor(), PhysAddr::new(0x0123_4567_89ab_cdc0));
    let remapped = RemappedEntry::ZERO.with_dst(0x1234_5678).with_sid(0x03_0a);
    assert_eq!((remapped.xapic_destination(), remapped.source().to_string()), (0x56, "03:01.2".to_owned()));
}

#[test]
fn a_handle_is_put_together_of_its_two_parts() {
    let address = RemappableAddress::ZERO;
    assert_eq!(address.with_handle_high(true).handle(), 0x8000);
    assert_eq!(address.with_handle_low(0x7ffe).handle(), 0x7ffe);
    assert_eq!(IoApicEntry::ZERO.with_index_high(true).with_index_low(1).index(), 0x8001);
}
