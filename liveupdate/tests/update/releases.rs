//! Handovers between releases: the one before wrote less, the one after writes more, and both are read.

use crate::common::machine::Machine;
use crate::common::reseal::{Record, records, redigest, reseal};
use crate::common::scene::*;
use crate::common::{Store, requester};
use liveupdate::host::MaySleep;
use liveupdate::{Container, OpenError, open};
use spec::handover::{self, kind};

/// Adopts and retrieves everything, without a single violation.
fn carries_over(scene: &Scene, container: &Container, skipped: u32) {
    let machine = &scene.machine;
    let mut store = Store::of(16);
    let opened = open(machine, container.fdt, store.storage()).unwrap();
    assert_eq!((opened.release(), opened.update(), opened.skipped()), ("1.0-test", 1, skipped));
    let mut words = vec![0; 1 << 15];
    let checked =
        opened.check(machine, &mut audit::Scratch::new(&mut words), &mut |f| panic!("{f}")).unwrap();
    let mut ctx = MaySleep::at_thread_start();
    let mut incoming = checked.adopt(machine, &mut ctx, &mut |_, _| true, &mut |_| ());
    assert_eq!(incoming.retrieve_region(DISK_MEMORY), Ok(disk_memory()));
    for (domain, who, source) in [(AUDIO_DOMAIN, AUDIO, AUDIO_SOURCE), (DISK_DOMAIN, DISK, DISK_SOURCE)] {
        incoming.retrieve_domain(domain).unwrap();
        assert_eq!(incoming.retrieve_requester(who).unwrap().requester, requester(source));
        assert_eq!(incoming.aliases_of(who).count(), usize::from(who == DISK));
    }
    assert_eq!(incoming.finish(&mut ctx, &mut |_| ()), 0);
    machine.dma(DISK_ALIAS, IOVA).unwrap();
}

#[test]
fn what_the_release_after_writes_is_read_as_far_as_it_is_known() {
    let scene = Scene::new();
    let container = scene.update();
    let mut longer = Vec::new();
    let mut skipped = 0;
    for (n, (kind, mut body)) in records(&scene.machine, &container).into_iter().enumerate() {
        // Fields appended that this release does not know, more of them than it has room for.
        body.extend(std::iter::repeat_n(0xeeee_eeee_eeee_eeee, 1 + n % 5 + 9 * (n % 2)));
        longer.push((kind, body));
        if n % 3 == 0 {
            longer.push((1000 + n as u16, vec![u64::MAX; n % 4]));
            skipped += 1;
        }
    }
    reseal(&scene.machine, &container, &longer, handover::VERSION + 1, handover::VERSION);
    carries_over(&scene, &container, skipped);
}

#[test]
fn what_the_release_before_did_not_write_yet_is_taken_as_not_there() {
    let scene = Scene::new();
    let container = scene.update();
    let shorter: Vec<Record> = records(&scene.machine, &container)
        .into_iter()
        .filter(|(kind, _)| *kind != kind::CONTAINER)
        .map(|(kind, mut body)| {
            body.truncate(handover::least_body(kind).unwrap() / 8);
            (kind, body)
        })
        .collect();
    assert!(shorter.iter().any(|(kind, body)| *kind == kind::UNIT && body.len() == 6));
    reseal(&scene.machine, &container, &shorter, handover::VERSION, handover::OLDEST_READABLE);
    carries_over(&scene, &container, 0);
}

fn version_error(machine: &Machine, container: &Container, version: u32, oldest: u32) -> OpenError {
    let all = records(machine, container);
    reseal(machine, container, &all, version, oldest);
    // Lesson 12: the version is looked at before anything that it decides on.
    machine.set(container.blob.plus(32), 0xbad);
    machine.set(container.blob.plus(16), u64::MAX);
    let mut store = Store::of(16);
    open(machine, container.fdt, store.storage()).map(|_| ()).unwrap_err()
}

#[test]
fn lesson_12_a_version_that_cannot_be_read_is_refused_before_length_and_digest() {
    let scene = Scene::new();
    let container = scene.update();
    for (version, oldest) in [(2, 2), (9, 5), (u32::MAX, u32::MAX), (0, 0)] {
        let error = version_error(&scene.machine, &container, version, oldest);
        assert_eq!(error, OpenError::Version { needs: oldest, reads: handover::VERSION });
    }
    let error = version_error(&scene.machine, &container, 2, 1);
    assert!(matches!(error, OpenError::Length { .. }), "{error}");
}

#[test]
fn another_magic_is_refused_first_of_all() {
    let scene = Scene::new();
    let container = scene.update();
    scene.machine.set(container.blob, u64::from_le_bytes(*b"HOLDOVEN"));
    redigest(&scene.machine, container.blob);
    let mut store = Store::of(16);
    let error = open(&scene.machine, container.fdt, store.storage()).map(|_| ()).unwrap_err();
    assert_eq!(error, OpenError::Magic(*b"HOLDOVEN"));
}
