//! Requesters that cannot be preserved, each refused with an error of its own and with nothing changed.

use crate::common::machine::Machine;
use crate::common::scene::*;
use crate::common::tables::{Tables, context};
use crate::common::{Store, extent, requester, source};
use liveupdate::host::MaySleep;
use liveupdate::{MAX_ALIASES, Outgoing, PreserveError, RegionKind, Token};
use spec::{DomainId, SourceId};

fn ctx() -> MaySleep {
    MaySleep::at_thread_start()
}

const NEW: Token = Token(0x7777_0000_0000_0007);

/// Tries to preserve `who` in a scene where everything else is preserved; whatever happens, nothing may change.
fn refused(scene: &Scene, who: SourceId) -> PreserveError {
    let (mut store, mut ctx) = (Store::of(32), ctx());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let refused = outgoing.preserve_requester(&mut ctx, NEW, requester(who)).unwrap_err();
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    refused
}

#[test]
fn a_requester_that_is_no_pci_function_has_an_error_of_its_own_and_few_messages() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    for _ in 0..100 {
        let refused = outgoing.preserve_requester(&mut ctx, NEW, requester(IOAPIC));
        assert_eq!(refused, Err(PreserveError::NotPciFunction(requester(IOAPIC))));
    }
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    let logged = || scene.machine.logged.borrow().len();
    assert_eq!(logged(), 5, "a caller cannot flood the log");
    assert!(scene.machine.logged.borrow()[0].contains("0000:f0:1f.7 is no PCI function"));
    scene.machine.clock.set(scene.machine.clock.get() + 6_000_000_000);
    outgoing.preserve_requester(&mut ctx, NEW, requester(IOAPIC)).unwrap_err();
    assert_eq!(logged(), 6, "later it may speak again");
}

#[test]
fn a_requester_without_a_domain_has_another_error() {
    let scene = Scene::new();
    let (bare, bus) = (source(0, 9, 0), source(0x55, 0, 0));
    scene.machine.functions.borrow_mut().extend([bare, bus].map(requester));
    assert_eq!(refused(&scene, bare), PreserveError::NoDomain(requester(bare)));
    assert_eq!(refused(&scene, bus), PreserveError::NoDomain(requester(bus)), "its bus has no table");
    assert!(scene.machine.logged.borrow().is_empty());
}

#[test]
fn a_requester_in_pass_through_is_refused_for_it_reaches_all_of_memory() {
    let scene = Scene::new();
    scene.machine.put_context(0, OTHER, context(9, scene.other).with_tt(2));
    assert_eq!(refused(&scene, OTHER), PreserveError::PassThrough(requester(OTHER)));
}

#[test]
fn translation_types_that_cannot_be_preserved_are_named() {
    let scene = Scene::new();
    let requester = requester(OTHER);
    scene.machine.put_context(0, OTHER, context(9, scene.other).with_tt(3));
    assert_eq!(refused(&scene, OTHER), PreserveError::Unsupported { requester, translation_type: 3 });
    scene.machine.put_context(0, OTHER, context(9, scene.other).with_tt(1));
    assert_eq!(refused(&scene, OTHER), PreserveError::DeviceTlb(requester));
}

#[test]
fn a_unit_that_is_off_or_in_another_mode_preserves_nobody() {
    let scene = Scene::with_units(2);
    scene.machine.attach(1, OTHER, 9, scene.other);
    let unit = &scene.machine.units[1];
    unit.status.set(unit.status.get().with_tes(false));
    assert_eq!(refused(&scene, OTHER), PreserveError::UnitNotTranslating(unit.id));
    unit.status.set(unit.status.get().with_tes(true));
    for mode in [2, 3] {
        unit.root.set(unit.root.get().with_ttm(mode));
        assert_eq!(refused(&scene, OTHER), PreserveError::UnitNotTranslating(unit.id));
    }
    scene.machine.behind.borrow_mut().insert(OTHER, 7);
    assert_eq!(refused(&scene, OTHER), PreserveError::NoUnit(requester(OTHER)));
}

#[test]
fn an_alias_with_another_entry_is_named() {
    let scene = Scene::new();
    let alias = source(3, 0, 0);
    scene.machine.aliases.borrow_mut().insert(requester(SHARING), vec![alias]);
    let differs = PreserveError::AliasDiffers { requester: requester(SHARING), alias };
    assert_eq!(refused(&scene, SHARING), differs, "its bus has no table");
    scene.machine.attach(0, source(3, 1, 0), 9, scene.other);
    assert_eq!(refused(&scene, SHARING), differs, "its entry is not present");
    scene.machine.attach(0, alias, 9, scene.other);
    assert_eq!(refused(&scene, SHARING), differs, "its entry leads elsewhere");
}

#[test]
fn a_source_id_of_two_requesters_in_two_domains_is_refused() {
    let scene = Scene::new();
    let (store, ctx) = (&mut Store::of(16), &mut ctx());
    let mut outgoing = scene.preserve(store, ctx);
    // Behind the bridge that is the disk's alias; meanwhile the alias' entry was made another domain's.
    let (second, alias) = (source(2, 5, 0), DISK_ALIAS);
    scene.machine.functions.borrow_mut().insert(requester(second));
    [second, alias].iter().for_each(|s| scene.machine.attach(0, *s, 7, scene.audio));
    scene.machine.aliases.borrow_mut().insert(requester(second), vec![alias]);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let refused = outgoing.preserve_requester(ctx, NEW, requester(second));
    assert_eq!(refused, Err(PreserveError::AliasTaken { requester: requester(second), alias }));
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
}

#[test]
fn as_many_aliases_as_there_is_room_for_and_not_one_more() {
    let scene = Scene::new();
    for count in [MAX_ALIASES, MAX_ALIASES + 1] {
        let aliases: Vec<_> = (0..count).map(|n| source(0x40 + n as u8, 0, 0)).collect();
        aliases.iter().for_each(|a| scene.machine.attach(0, *a, 7, scene.audio));
        scene.machine.aliases.borrow_mut().insert(requester(SHARING), aliases);
        if count > MAX_ALIASES {
            let (requester, limit) = (requester(SHARING), MAX_ALIASES);
            assert_eq!(refused(&scene, SHARING), PreserveError::TooManyAliases { requester, limit });
            continue;
        }
        let (mut store, mut ctx) = (Store::of(32), ctx());
        let before = scene.machine.snapshot();
        let mut outgoing = scene.preserve(&mut store, &mut ctx);
        outgoing.preserve_requester(&mut ctx, NEW, requester(SHARING)).unwrap();
        assert_eq!(outgoing.totals().aliases, 1 + MAX_ALIASES);
        for token in [NEW, DISK, AUDIO] {
            outgoing.unpreserve_requester(&mut ctx, token).unwrap();
        }
        for token in [DISK_DOMAIN, AUDIO_DOMAIN] {
            outgoing.unpreserve_domain(&mut ctx, token).unwrap();
        }
        for token in [SOUND, DISK_MEMORY, BAR] {
            outgoing.unpreserve_region(&mut ctx, token).unwrap();
        }
        assert_eq!(scene.machine.snapshot(), before);
    }
}

#[test]
fn two_buses_or_two_units_that_share_a_table_are_refused() {
    let scene = Scene::with_units(2);
    let (machine, bus) = (&scene.machine, source(0x60, 2, 0));
    machine.functions.borrow_mut().insert(requester(bus));
    // The root entry of another bus leads to the context table of bus 0.
    machine.set(machine.root_entry(0, 0x60), machine.get(machine.root_entry(0, 0)));
    let table = machine.get(machine.root_entry(0, 0)) & !0xfff;
    assert_eq!(refused(&scene, bus).to_string(), format!("table {table:#x} is reached twice"));
    // The second unit uses the first one's root table.
    machine.units[1].root.set(machine.units[0].root.get());
    machine.behind.borrow_mut().insert(OTHER, 1);
    machine.attach(1, OTHER, 7, scene.audio);
    assert_eq!(refused(&scene, OTHER), PreserveError::TableShared(machine.units[0].root.get().table()));
}

#[test]
fn a_context_table_inside_a_preserved_region_is_refused_for_devices_write_there() {
    let scene = Scene::with_units(2);
    let machine = &scene.machine;
    machine.attach(1, OTHER, 7, scene.audio);
    for at in [machine.context_entry(1, OTHER).frame(), machine.units[1].root.get().table().frame()] {
        let (mut store, mut ctx) = (Store::of(32), ctx());
        let mut outgoing = scene.preserve(&mut store, &mut ctx);
        let region = extent(at.start().get(), 1);
        outgoing.preserve_region(&mut ctx, Token(1000), region, RegionKind::Memory).unwrap();
        let refused = outgoing.preserve_requester(&mut ctx, NEW, requester(OTHER));
        assert_eq!(refused, Err(PreserveError::Overlap(region)));
        outgoing.unpreserve_region(&mut ctx, Token(1000)).unwrap();
        outgoing.preserve_requester(&mut ctx, NEW, requester(OTHER)).unwrap();
    }
}

/// A scene in which `who` on `unit` is attached to `domain` under `did`, and what preserving it gives.
fn with_id(unit: usize, did: u64, domain: fn(&Scene) -> Tables) -> Result<(), PreserveError> {
    let scene = Scene::with_units(2);
    let who = source(0, 0x10, 0);
    scene.machine.functions.borrow_mut().insert(requester(who));
    scene.machine.attach(unit, who, did, domain(&scene));
    let (mut store, mut ctx) = (Store::of(32), ctx());
    let mut outgoing: Outgoing<'_, '_, Machine> = scene.preserve(&mut store, &mut ctx);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let result = outgoing.preserve_requester(&mut ctx, NEW, requester(who));
    if result.is_err() {
        assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
    } else {
        let _sealed = freeze(outgoing, &mut ctx).unwrap();
    }
    result
}

#[test]
fn lesson_08_a_domain_id_clash_is_told_from_legal_sharing_and_is_a_matter_of_one_unit() {
    // The audio domain has id 7 on unit 0, the disk's id 8.
    let audio = |s: &Scene| s.audio;
    let disk = |s: &Scene| s.disk;
    assert_eq!(with_id(0, 7, audio), Ok(()), "one domain, two requesters, one id: sharing");
    let clash = |id| {
        let requester = requester(source(0, 0x10, 0));
        Err(PreserveError::DomainIdClash { requester, domain_id: DomainId(id) })
    };
    assert_eq!(with_id(0, 7, disk), clash(7), "the id of another domain");
    assert_eq!(with_id(0, 12, audio), clash(12), "a second id of one domain");
    assert_eq!(with_id(1, 7, disk), Ok(()), "the same id on another unit is another id");
    assert_eq!(with_id(1, 12, audio), Ok(()), "a domain may have another id on another unit");
}
