//! A handover is foreign data (lesson 12): whatever it says, opening it ends, and ends in an error or in a book that can be
//! adopted without giving anybody more than they had.

use crate::common::machine::Machine;
use crate::common::reseal::{Record, records, redigest, reseal, words_of};
use crate::common::scene::*;
use crate::common::{Store, extent};
use liveupdate::host::MaySleep;
use liveupdate::{Container, OpenError, open};
use proptest::prelude::*;
use spec::PhysAddr;
use spec::handover::{self, kind};

fn open_error(machine: &Machine, fdt: PhysAddr) -> OpenError {
    let mut store = Store::of(64);
    let opened = open(machine, fdt, store.storage());
    let error = opened.map(|_| "opened").unwrap_err();
    assert!(!error.to_string().is_empty());
    error
}

/// Goes the whole way with a handover that may be damaged. Nothing may panic, translation stays on, and whoever was cut
/// off stays cut off.
fn live_with(scene: &Scene, container: &Container) {
    let machine = &scene.machine;
    let mut store = Store::of(64);
    let opened = open(machine, container.fdt, store.storage());
    if let Ok(opened) = opened {
        let _ = opened.for_each_preserved(machine, &mut |_| ());
        let mut words = vec![0; 1 << 15];
        let checked = opened.check(machine, &mut audit::Scratch::new(&mut words), &mut |_| ());
        if let Ok(checked) = checked {
            let mut ctx = MaySleep::at_thread_start();
            let mut incoming = checked.adopt(machine, &mut ctx, &mut |_, _| true, &mut |_| ());
            let mut tokens = Vec::new();
            incoming.for_each_token(&mut |t| tokens.push(t));
            for token in tokens {
                let _ = incoming.retrieve_region(token);
                let _ = incoming.retrieve_domain(token);
                let _ = incoming.retrieve_requester(token);
            }
            incoming.finish(&mut ctx, &mut |_| ());
        }
    }
    assert!(machine.units[0].status.get().tes());
    for stranger in STRANGERS {
        assert!(machine.dma(stranger, IOVA).is_err());
    }
}

fn blob_words(container: &Container) -> u64 {
    container.blob_bytes / 8
}

#[test]
fn every_flipped_bit_of_the_records_is_found_by_the_digest_or_before() {
    let scene = Scene::new();
    let container = scene.update();
    for word in 0..blob_words(&container) {
        let at = container.blob.plus(8 * word);
        let old = scene.machine.get(at);
        for bit in [0, 7, 13, 31, 32, 45, 63] {
            scene.machine.set(at, old ^ 1 << bit);
            open_error(&scene.machine, container.fdt);
        }
        scene.machine.set(at, old);
    }
    let mut store = Store::of(16);
    open(&scene.machine, container.fdt, store.storage()).unwrap();
}

#[test]
fn every_word_of_the_records_may_be_anything_though_the_digest_is_right() {
    let scene = Scene::new();
    let container = scene.update();
    let clean = scene.machine.shared.frames.borrow().clone();
    let top = scene.audio.top.get();
    for word in 0..blob_words(&container) {
        let at = container.blob.plus(8 * word);
        let old = scene.machine.get(at);
        for value in [0, 1, old + 1, old ^ 1 << 32, old << 1, old ^ 1 << 12, top, u64::MAX, u64::MAX << 12] {
            scene.machine.set(at, value);
            redigest(&scene.machine, container.blob);
            live_with(&scene, &container);
            *scene.machine.shared.frames.borrow_mut() = clean.clone();
        }
    }
}

#[test]
fn a_handover_cut_short_anywhere_is_an_error() {
    let scene = Scene::new();
    let container = scene.update();
    let all = records(&scene.machine, &container);
    // The last record loses one word after the other, then is gone; the count in the header stays.
    for keep in 0..all.len() {
        let cut: Vec<Record> = all[..keep].to_vec();
        reseal(&scene.machine, &container, &cut, 1, 1);
        let header = scene.machine.get(container.blob.plus(24)) & !0xffff_ffff | all.len() as u64;
        scene.machine.set(container.blob.plus(24), header);
        redigest(&scene.machine, container.blob);
        assert!(matches!(open_error(&scene.machine, container.fdt), OpenError::Length { .. }));
    }
    for (n, record) in all.iter().enumerate() {
        for words in 0..record.1.len() {
            let mut cut = all.clone();
            cut[n].1.truncate(words);
            reseal(&scene.machine, &container, &cut, 1, 1);
            let mut store = Store::of(64);
            let least = handover::least_body(record.0).unwrap() / 8;
            let opened = open(&scene.machine, container.fdt, store.storage());
            assert_eq!(
                opened.is_ok(),
                words >= least,
                "record {n} of kind {} cut to {words} words",
                record.0
            );
        }
    }
}

#[test]
fn records_in_another_number_than_the_header_says_are_an_error() {
    let scene = Scene::new();
    let container = scene.update();
    let at = container.blob.plus(24);
    let old = scene.machine.get(at);
    for count in [0, 1, old - 1, old + 1, u64::from(u32::MAX)] {
        scene.machine.set(at, count);
        redigest(&scene.machine, container.blob);
        assert!(matches!(open_error(&scene.machine, container.fdt), OpenError::Length { .. }), "{count}");
    }
}

#[test]
fn a_record_left_out_or_twice_is_never_taken_for_more_than_it_says() {
    let scene = Scene::new();
    let container = scene.update();
    let clean = scene.machine.shared.frames.borrow().clone();
    let all = records(&scene.machine, &container);
    for n in 0..all.len() {
        let mut fewer = all.clone();
        fewer.remove(n);
        reseal(&scene.machine, &container, &fewer, 1, 1);
        live_with(&scene, &container);
        *scene.machine.shared.frames.borrow_mut() = clean.clone();
        // Lesson 10: no record is taken twice, but for a scratch area and the id of a domain, which change nothing.
        let mut more = all.clone();
        more.push(all[n].clone());
        reseal(&scene.machine, &container, &more, 1, 1);
        let mut store = Store::of(64);
        let opened = open(&scene.machine, container.fdt, store.storage()).is_ok();
        assert_eq!(opened, [kind::SCRATCH, kind::DOMAIN_ID].contains(&all[n].0), "kind {}", all[n].0);
        *scene.machine.shared.frames.borrow_mut() = clean.clone();
    }
}

#[test]
fn what_was_handed_over_may_not_lie_on_one_another_nor_on_the_handover() {
    let scene = Scene::new();
    let container = scene.update();
    let all = records(&scene.machine, &container);
    let places = [
        scene.audio.top,
        scene.disk.top,
        scene.machine.units[0].root.get().table(),
        PhysAddr::new(scene.machine.context_entry(0, DISK_ALIAS).get() & !0xfff),
        sound().start(),
        container.blob,
        container.fdt,
        container.frames.start().plus(0x2000),
    ];
    for place in places {
        let region = handover::Region { token: 900, start: place.get(), bytes: 4096, kind: 0, reserved: 0 };
        let tables = handover::DomainTables { start: place.get(), bytes: 4096, domain: 1, reserved: 0 };
        for record in [(kind::REGION, words_of(&region)), (kind::DOMAIN_TABLES, words_of(&tables))] {
            let more: Vec<Record> = all.iter().cloned().chain([record]).collect();
            reseal(&scene.machine, &container, &more, 1, 1);
            let error = open_error(&scene.machine, container.fdt);
            assert!(matches!(error, OpenError::Overlap(e) if e.contains(place.frame())), "{place}: {error}");
        }
    }
    let free = extent(0x6000_0000, 1);
    let twice =
        handover::Region { token: AUDIO.0, start: free.start().get(), bytes: 4096, kind: 0, reserved: 0 };
    let more: Vec<Record> = all.iter().cloned().chain([(kind::REGION, words_of(&twice))]).collect();
    reseal(&scene.machine, &container, &more, 1, 1);
    assert_eq!(open_error(&scene.machine, container.fdt), OpenError::TokenTwice(AUDIO));
}

#[test]
fn records_that_contradict_one_another_are_named() {
    let scene = Scene::new();
    let container = scene.update();
    let all = records(&scene.machine, &container);
    let requester = all.iter().position(|(kind, _)| *kind == kind::REQUESTER).unwrap();
    let alias = all.iter().position(|(kind, _)| *kind == kind::ALIAS).unwrap();
    // (record, word, the bits turned over, added or replaced, what the error says)
    let cases: [(usize, usize, u64, bool, &str); 8] = [
        (requester, 0, 0xff00, true, "the requester is listed twice"),
        (requester, 3, 1 << 32, false, "does not lead to the requester's domain"),
        (requester, 3, 7 << 32, false, "no such domain"),
        (requester, 3, 1, false, "no such unit"),
        (requester, 1, 1, false, "does not lead to the requester's domain"),
        (requester, 4, 1, false, "the requester's segment is not its unit's"),
        (requester, 4, 0x4400 << 16, false, "the bus has no context table"),
        (alias, 0, 1, false, "shares a source-id with a requester of another domain"),
    ];
    for (record, word, bits, added, what) in cases {
        let mut changed = all.clone();
        if added {
            changed.push(all[record].clone());
            changed.last_mut().unwrap().1[word] ^= bits;
        } else {
            changed[record].1[word] ^= bits;
        }
        if record == alias {
            // The disk's alias becomes the sound's too.
            changed.push(all[alias].clone());
        }
        reseal(&scene.machine, &container, &changed, 1, 1);
        let error = open_error(&scene.machine, container.fdt);
        assert!(
            matches!(error, OpenError::Record { what: found, .. } if found.contains(what)),
            "{what}: {error}"
        );
    }
}

#[test]
fn a_container_anywhere_else_is_refused_without_a_fault() {
    let scene = Scene::new();
    let container = scene.update();
    let machine = &scene.machine;
    for at in [0, 8, 0x1234_5678, container.fdt.get() + 8, !0xfff, u64::MAX - 7, 0x7777_0000] {
        let error = open_error(machine, PhysAddr::new(at));
        assert!(matches!(error, OpenError::Nowhere(..)), "{at:#x}: {error}");
    }
    for at in [container.blob, sound().start(), machine.map_of(&container)] {
        assert!(matches!(open_error(machine, at), OpenError::Kho(_)));
    }
}

#[test]
fn storage_too_small_for_what_was_handed_over_is_named() {
    let scene = Scene::new();
    let container = scene.update();
    for n in 0..7 {
        let mut store = Store::of(16);
        match n {
            0 => store.regions.truncate(2),
            1 => store.domains.truncate(1),
            2 => store.tables.truncate(1),
            3 => store.requesters.truncate(1),
            4 => store.aliases.truncate(0),
            5 => store.contexts.truncate(1),
            _ => store.runs.truncate(3),
        }
        let opened = open(&scene.machine, container.fdt, store.storage()).map(|_| ());
        assert!(matches!(opened, Err(OpenError::Full(_))), "{n}: {opened:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_damage_to_records_tree_and_map_is_lived_with(
        damage in prop::collection::vec((0_usize..3, any::<u64>(), any::<u8>(), any::<bool>()), 1..6),
        fix_digest in any::<bool>(),
    ) {
        let scene = Scene::new();
        let container = scene.update();
        let machine = &scene.machine;
        let map = machine.map_of(&container);
        for (part, place, byte, high) in damage {
            let (start, bytes) = match part {
                0 => (container.blob, container.blob_bytes),
                1 => (container.fdt, 320),
                // A node, where there is one entry or bit among many.
                _ => (map.plus(place % 8 * 4096), 4096),
            };
            let at = start.plus((place % bytes) & !7);
            let shift = if high { 8 * (place >> 32 & 7) } else { 0 };
            machine.set(at, machine.get(at) ^ (u64::from(byte) << shift));
        }
        if fix_digest {
            redigest(machine, container.blob);
        }
        live_with(&scene, &container);
    }
}
