//! A handover of scalable mode is foreign data too (lesson 12): whatever it says, opening it ends, and nobody gets more than
//! they had.

use crate::common::Store;
use crate::common::reseal::{Record, records, redigest, reseal, words_of};
use crate::common::scalable::*;
use liveupdate::host::MaySleep;
use liveupdate::{Container, OpenError, open};
use proptest::prelude::*;
use spec::handover::{self, kind};

/// Goes the whole way with a handover that may be damaged. Nothing may panic, translation stays on, and who was cut off
/// stays cut off.
fn live_with(scene: &Scene, container: &Container) {
    let machine = &scene.machine;
    let mut store = Store::of(64);
    if let Ok(opened) = open(machine, container.fdt, store.storage()) {
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
    for pasid in STRAY_PASIDS {
        assert!(machine.request(NIC_SOURCE, Some(pasid), IOVA).is_err());
    }
}

fn open_error(scene: &Scene, container: &Container) -> OpenError {
    let mut store = Store::of(64);
    open(&scene.machine, container.fdt, store.storage()).map(|_| "opened").unwrap_err()
}

#[test]
fn lesson_12_every_word_of_the_records_may_be_anything_though_the_digest_is_right() {
    let scene = Scene::new();
    let container = scene.update();
    let clean = scene.machine.shared.frames.borrow().clone();
    for word in 0..container.blob_bytes / 8 {
        let at = container.blob.plus(8 * word);
        let old = scene.machine.get(at);
        for value in
            [0, old + 1, old ^ 1 << 32, old << 1, old ^ 1 << 12, scene.nic.get(), u64::MAX, u64::MAX << 12]
        {
            scene.machine.set(at, value);
            redigest(&scene.machine, container.blob);
            live_with(&scene, &container);
            *scene.machine.shared.frames.borrow_mut() = clean.clone();
        }
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
fn records_that_contradict_one_another_are_named() {
    let scene = Scene::new();
    let container = scene.update();
    let all = records(&scene.machine, &container);
    let nth = |of, n: usize| all.iter().enumerate().filter(|(_, r)| r.0 == of).nth(n).unwrap().0;
    let requester = nth(kind::REQUESTER, 0);
    let (directory, table) = (nth(kind::PASID_TABLES, 0), nth(kind::PASID_TABLES, 1));
    let [without, shared, process] = [0, 1, 2].map(|n| nth(kind::ATTACHMENT, n));
    // (record, word, what it becomes, what the error says)
    let change = |record: usize, word: usize, f: &dyn Fn(u64) -> u64| {
        let mut changed = all.clone();
        changed[record].1[word] = f(changed[record].1[word]);
        changed
    };
    let cases: [(Vec<Record>, &str); 19] = [
        (change(nth(kind::CONTEXT_TABLE, 0), 1, &|w| w | 2 << 40), "halves that its mode does not have"),
        (change(nth(kind::DOMAIN, 0), 4, &|w| w & !0xff00 | 2 << 8), "format or depth"),
        (change(nth(kind::DOMAIN, 1), 4, &|w| w & !0xff | 3), "format or depth"),
        (change(requester, 1, &|w| w & !1), "context entry is not present"),
        (change(directory, 0, &|w| w + 0x1000), "not the directory"),
        (change(directory, 1, &|w| w + 0x1000), "not the directory"),
        (change(directory, 3, &|_| 7), "unknown kind"),
        (change(table, 1, &|w| w + 0x1000), "not a table"),
        (change(table, 2, &|w| w ^ 1 << 32), "not a table"),
        (change(table, 2, &|w| w | 1 << 52), "not a table"),
        (change(table, 2, &|w| w | 9), "no such requester"),
        (change(without, 8, &|w| w | 900 << 32), "the PASID has no table"),
        (change(shared, 8, &|w| w & 0xffff_ffff), "the PASID is listed twice"),
        (change(shared, 8, &|w| w | 300 << 32), "the PASID has no table"),
        (change(shared, 0, &|w| w & !1), "the PASID entry does not lead to its domain"),
        (change(shared, 2, &|w| w ^ 1 << 12), "the PASID entry does not lead to its domain"),
        (change(process, 9, &|w| w & 0xffff_ffff), "the PASID entry does not lead to its domain"),
        (change(process, 9, &|w| w | 9 << 32), "no such parent domain"),
        (change(shared, 9, &|w| w | 9), "no such domain"),
    ];
    for (changed, what) in cases {
        reseal(&scene.machine, &container, &changed, 1, 1);
        let error = open_error(&scene, &container);
        let named = matches!(error, OpenError::Record { what: found, .. } if found.contains(what));
        assert!(named, "{what}: {error}");
    }
    // The shared domain, walked alone for the GPU, below the guest's for the NIC.
    let mut changed = all.clone();
    let nested = spec::scalable::PasidEntry::from_raw(changed[process].1[..8].try_into().unwrap());
    changed[process].1[9] = changed[process].1[9] & !0xffff_ffff | 1;
    assert_eq!(nested.translation(), spec::scalable::PasidTranslation::Nested);
    reseal(&scene.machine, &container, &changed, 1, 1);
    let error = open_error(&scene, &container);
    let below =
        matches!(error, OpenError::Record { what, .. } if what.contains("lies below another one elsewhere"));
    assert!(below, "{error}");
}

#[test]
fn a_requester_whose_structures_are_not_all_there_is_named() {
    let scene = Scene::new();
    let container = scene.update();
    let all = records(&scene.machine, &container);
    let nth = |of, n: usize| all.iter().enumerate().filter(|(_, r)| r.0 == of).nth(n).unwrap().0;
    // Without its directory; without the PASID of requests without PASID.
    for missing in [nth(kind::PASID_TABLES, 0), nth(kind::ATTACHMENT, 0)] {
        let mut fewer = all.clone();
        fewer.remove(missing);
        reseal(&scene.machine, &container, &fewer, 1, 1);
        let error = open_error(&scene, &container);
        let nic = crate::common::requester(NIC_SOURCE);
        assert!(matches!(error, OpenError::Incomplete(who) if who == nic), "{error}");
    }
}

#[test]
fn pasid_structures_may_not_lie_on_anything_else() {
    let scene = Scene::new();
    let container = scene.update();
    let all = records(&scene.machine, &container);
    let table = all.iter().position(|(k, w)| *k == kind::PASID_TABLES && w[3] as u32 == 1).unwrap();
    for place in [scene.guest.top, scene.gpu, scene.nic, guest_memory().start(), container.blob] {
        let mut changed = all.clone();
        changed[table].1[0] = place.get();
        reseal(&scene.machine, &container, &changed, 1, 1);
        let error = open_error(&scene, &container);
        assert!(matches!(error, OpenError::Overlap(e) if e.contains(place.frame())), "{place}: {error}");
    }
    // A domain that is not nested may not have tables in preserved memory; a nested one may, but not twice.
    for (domain, bad) in [(1, true), (2, false)] {
        let start = guest_memory().start().get();
        let run = handover::DomainTables { start, bytes: 4096, domain, reserved: 0 };
        let more: Vec<Record> = all.iter().cloned().chain([(kind::DOMAIN_TABLES, words_of(&run))]).collect();
        reseal(&scene.machine, &container, &more, 1, 1);
        let mut store = Store::of(64);
        assert_eq!(open(&scene.machine, container.fdt, store.storage()).is_err(), bad);
        let twice: Vec<Record> = more.into_iter().chain([(kind::DOMAIN_TABLES, words_of(&run))]).collect();
        reseal(&scene.machine, &container, &twice, 1, 1);
        assert!(matches!(open_error(&scene, &container), OpenError::Overlap(_)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn random_changes_to_a_handover_with_pasids_let_nobody_through(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0..3_u8), 1..6),
    ) {
        let scene = Scene::new();
        let container = scene.update();
        for (index, value, how) in changes {
            let at = container.blob.plus(8 * index.index(container.blob_bytes as usize / 8) as u64);
            let old = scene.machine.get(at);
            let value = match how {
                0 => value,
                1 => old ^ 1 << (value % 64),
                _ => old.wrapping_add((value % 16) << ((value >> 32) % 40)),
            };
            scene.machine.set(at, value);
        }
        redigest(&scene.machine, container.blob);
        live_with(&scene, &container);
    }
}
