//! Two functions behind one bridge share its source-id as an alias: the alias lives as long as one of them.

use crate::common::machine::Machine;
use crate::common::scene::*;
use crate::common::{Store, requester, source};
use liveupdate::host::{Atomic, MaySleep};
use liveupdate::{Container, Incoming, Outgoing, Token};
use spec::SourceId;

/// Behind the bridge 02:00.0, whose source-id is the disk's alias too.
const SECOND: SourceId = SourceId::new(2, 5, 0);
const SECOND_TOKEN: Token = Token(0x22);

fn scene() -> Scene {
    let scene = Scene::new();
    scene.machine.attach(0, SECOND, 8, scene.disk);
    scene.machine.functions.borrow_mut().insert(requester(SECOND));
    scene.machine.aliases.borrow_mut().insert(requester(SECOND), vec![DISK_ALIAS]);
    scene
}

fn preserve<'h, 's>(scene: &'h Scene, store: &'s mut Store, ctx: &mut MaySleep) -> Outgoing<'h, 's, Machine> {
    let mut outgoing = scene.preserve(store, ctx);
    outgoing.preserve_requester(ctx, SECOND_TOKEN, requester(SECOND)).unwrap();
    outgoing
}

/// Whether disk, second and the bridge's own id are translated, nothing cached.
fn translated(scene: &Scene) -> [bool; 3] {
    [DISK_SOURCE, SECOND, DISK_ALIAS].map(|s| scene.machine.dma(s, IOVA).is_ok())
}

#[test]
fn either_may_be_taken_back_first_and_everything_is_as_before() {
    let scene = scene();
    let before = scene.machine.snapshot();
    for order in [[DISK, SECOND_TOKEN], [SECOND_TOKEN, DISK]] {
        let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
        let mut outgoing = preserve(&scene, &mut store, &mut ctx);
        assert_eq!(outgoing.totals().aliases, 2);
        outgoing.unpreserve_requester(&mut ctx, order[0]).unwrap();
        // The alias is still preserved with the other: a freeze finds nothing wrong.
        let mut outgoing = freeze(outgoing, &mut ctx).unwrap().unfreeze(&mut ctx);
        outgoing.unpreserve_requester(&mut ctx, order[1]).unwrap();
        outgoing.unpreserve_requester(&mut ctx, AUDIO).unwrap();
        outgoing.unpreserve_domain(&mut ctx, DISK_DOMAIN).unwrap();
        outgoing.unpreserve_domain(&mut ctx, AUDIO_DOMAIN).unwrap();
        for region in [SOUND, DISK_MEMORY, BAR] {
            outgoing.unpreserve_region(&mut ctx, region).unwrap();
        }
        assert_eq!(scene.machine.snapshot(), before);
    }
}

fn update(scene: &Scene) -> Container {
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let sealed = freeze(preserve(scene, &mut store, &mut ctx), &mut ctx).unwrap();
    let container = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
    scene.machine.jump(&container);
    container
}

fn adopt<'h, 's>(scene: &'h Scene, container: &Container, store: &'s mut Store) -> Incoming<'h, 's, Machine> {
    let checked = check(&scene.machine, container, store);
    assert_eq!(checked.violations, 0);
    checked.adopt(&scene.machine, &mut MaySleep::at_thread_start(), &mut |_, _| true, &mut |_| ())
}

#[test]
fn the_bridge_stays_with_whichever_of_them_is_retrieved_and_goes_with_the_last() {
    for (retrieved, expected) in [
        (&[DISK, SECOND_TOKEN][..], [true, true, true]),
        (&[DISK], [true, false, true]),
        (&[SECOND_TOKEN], [false, true, true]),
        (&[], [false, false, false]),
    ] {
        let scene = scene();
        let container = update(&scene);
        assert_eq!(translated(&scene), [true; 3]);
        let mut store = Store::of(16);
        let mut incoming = adopt(&scene, &container, &mut store);
        incoming.retrieve_domain(DISK_DOMAIN).unwrap();
        for token in retrieved {
            incoming.retrieve_requester(*token).unwrap();
            assert!(incoming.aliases_of(*token).eq([DISK_ALIAS]));
        }
        incoming.finish(&mut MaySleep::at_thread_start(), &mut |_| ());
        assert_eq!(translated(&scene), expected);
    }
}

#[test]
fn the_bridge_itself_may_be_preserved_too_when_it_is_a_function_that_issues_dma() {
    let scene = scene();
    scene.machine.functions.borrow_mut().insert(requester(DISK_ALIAS));
    let (mut store, mut ctx) = (Store::of(16), MaySleep::at_thread_start());
    let mut outgoing = preserve(&scene, &mut store, &mut ctx);
    outgoing.preserve_requester(&mut ctx, Token(0x23), requester(DISK_ALIAS)).unwrap();
    let sealed = freeze(outgoing, &mut ctx).unwrap();
    let container = sealed.cut_off(&Atomic::for_good(ctx), &mut |_| ()).container;
    scene.machine.jump(&container);
    let mut store = Store::of(16);
    let incoming = adopt(&scene, &container, &mut store);
    assert_eq!(incoming.opened().requesters().count(), 4);
    assert_eq!(source(2, 0, 0), DISK_ALIAS);
}
