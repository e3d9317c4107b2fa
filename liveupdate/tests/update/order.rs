//! Preserve and unpreserve in every order: the right one works, the wrong ones are refused by name, and what was taken
//! back leaves nothing behind.

use crate::common::machine::Machine;
use crate::common::scene::*;
use crate::common::{Store, extent, requester};
use liveupdate::host::MaySleep;
use liveupdate::{Outgoing, PreserveError, RegionKind, Token, UnpreserveError};
use spec::{Iova, PhysAddr};

fn ctx() -> MaySleep {
    MaySleep::at_thread_start()
}

#[test]
fn the_right_order_works_and_the_book_counts_it() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let outgoing = scene.preserve(&mut store, &mut ctx);
    let totals = outgoing.totals();
    assert_eq!((totals.regions, totals.domains, totals.requesters), (3, 2, 2));
    assert_eq!((totals.units, totals.aliases, totals.context_tables), (1, 1, 2));
    let marked = scene.machine.marked();
    let root = scene.machine.units[0].root.get().table().frame().number();
    assert!(marked.contains(&root), "the unit's root table comes with the requester");
    assert!(sound().first().number() == 0x10000 && (0x10000..0x10008).all(|n| marked.contains(&n)));
    assert!(!marked.contains(&bar().first().number()), "a device range has no frames to keep");
    assert!(outgoing.requesters().any(|k| k.token == DISK && k.domain_id.0 == 8));
    assert!(outgoing.regions().any(|r| r.token == BAR));
    assert!(outgoing.domains().any(|d| d.token == AUDIO_DOMAIN && d.levels == 3));
    assert!(outgoing.units().all(|u| u.requesters == 2));
}

#[test]
fn a_domain_before_its_region_is_refused_with_the_leaf_that_points_outside() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let before = scene.machine.snapshot();
    let mut outgoing = Outgoing::new(&scene.machine, store.storage());
    let refused = outgoing.preserve_domain(&mut ctx, AUDIO_DOMAIN, scene.audio.of());
    let target = extent(sound().start().get(), 1);
    assert_eq!(refused, Err(PreserveError::LeafOutside { iova: Iova::new(IOVA), target }));
    let words = refused.unwrap_err().to_string();
    assert!(words.contains("0x10000000") && words.contains("preserve the region first"), "{words}");

    // With all but the last page: the leaf of the last page is named.
    let most = extent(sound().start().get(), 7);
    outgoing.preserve_region(&mut ctx, SOUND, most, RegionKind::Memory).unwrap();
    let refused = outgoing.preserve_domain(&mut ctx, AUDIO_DOMAIN, scene.audio.of());
    let target = extent(sound().start().get() + 0x7000, 1);
    assert_eq!(refused, Err(PreserveError::LeafOutside { iova: Iova::new(IOVA + 0x7000), target }));
    outgoing.unpreserve_region(&mut ctx, SOUND).unwrap();
    assert_eq!(scene.machine.snapshot(), before);
}

#[test]
fn a_large_leaf_may_span_regions_that_touch_but_no_gap() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = Outgoing::new(&scene.machine, store.storage());
    outgoing.preserve_region(&mut ctx, BAR, bar(), RegionKind::Device).unwrap();
    let start = disk_memory().start().get();
    // The second is longer than the leaf by as much as the gap before it.
    let parts = [(1, 0, 100), (2, 101, 412), (3, 100, 1)];
    for (token, first, count) in parts {
        let refused = outgoing.preserve_domain(&mut ctx, DISK_DOMAIN, scene.disk.of());
        assert!(matches!(refused, Err(PreserveError::LeafOutside { target, .. }) if target == disk_memory()));
        let part = extent(start + 4096 * first, count);
        outgoing.preserve_region(&mut ctx, Token(100 + token), part, RegionKind::Memory).unwrap();
    }
    outgoing.preserve_domain(&mut ctx, DISK_DOMAIN, scene.disk.of()).unwrap();
}

#[test]
fn a_requester_before_its_domain_is_refused_with_the_domain_that_is_missing() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let before = scene.machine.snapshot();
    let mut outgoing = Outgoing::new(&scene.machine, store.storage());
    let who = requester(AUDIO_SOURCE);
    let refused = outgoing.preserve_requester(&mut ctx, AUDIO, who);
    let top_table = scene.audio.top;
    assert_eq!(refused, Err(PreserveError::DomainNotPreserved { requester: who, top_table }));
    assert!(refused.unwrap_err().to_string().contains("preserve it first"));
    assert_eq!(scene.machine.snapshot(), before);
}

#[test]
fn token_zero_and_a_token_in_use_are_refused_whatever_they_name() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let free = extent(0x5000_0000, 1);
    let before = (scene.machine.snapshot(), outgoing.totals());
    for token in [Token(0), SOUND, AUDIO_DOMAIN, DISK] {
        let taken = Err(PreserveError::TokenTaken(token));
        assert_eq!(outgoing.preserve_region(&mut ctx, token, free, RegionKind::Memory), taken);
        assert_eq!(outgoing.preserve_domain(&mut ctx, token, scene.other.of()), taken);
        assert_eq!(outgoing.preserve_requester(&mut ctx, token, requester(OTHER)), taken);
    }
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
}

#[test]
fn whatever_would_share_a_frame_with_something_preserved_is_refused() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let root = scene.machine.units[0].root.get().table();
    let context = scene.machine.context_entry(0, AUDIO_SOURCE);
    let before = (scene.machine.snapshot(), outgoing.totals());
    let region = extent(sound().start().get(), 8);
    for (start, count) in [
        (sound().start(), 1),
        (sound().start().plus(0x7000), 2),
        (PhysAddr::new(sound().start().get() - 0x1000), 2),
        (bar().start(), 1),
        (scene.audio.top, 1),
        (root, 1),
        (PhysAddr::new(context.get() & !0xfff), 1),
    ] {
        let wanted = extent(start.get(), count);
        let refused = outgoing.preserve_region(&mut ctx, Token(99), wanted, RegionKind::Memory);
        let Err(PreserveError::Overlap(taken)) = refused else { panic!("{wanted}: {refused:?}") };
        assert!(taken.overlaps(wanted) && (taken != region || wanted.overlaps(region)));
    }
    let twice = outgoing.preserve_domain(&mut ctx, Token(99), scene.audio.of());
    assert_eq!(twice, Err(PreserveError::DomainTaken(scene.audio.top)));
    let twice = outgoing.preserve_requester(&mut ctx, Token(99), requester(AUDIO_SOURCE));
    assert_eq!(twice, Err(PreserveError::AlreadyPreserved(requester(AUDIO_SOURCE))));
    assert_eq!((scene.machine.snapshot(), outgoing.totals()), before);
}

#[test]
fn a_preserved_domain_is_held_and_let_go_when_it_is_taken_back() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = Outgoing::new(&scene.machine, store.storage());
    outgoing.preserve_region(&mut ctx, SOUND, sound(), RegionKind::Memory).unwrap();
    let held = || scene.machine.holds.borrow().clone();
    assert!(held().is_empty());
    outgoing.preserve_domain(&mut ctx, AUDIO_DOMAIN, scene.audio.of()).unwrap();
    assert_eq!(held().get(&scene.audio.top.get()), Some(&1));
    outgoing.unpreserve_domain(&mut ctx, AUDIO_DOMAIN).unwrap();
    assert!(held().is_empty());
}

#[test]
fn only_levels_that_second_stage_tables_have_are_taken() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = Outgoing::new(&scene.machine, store.storage());
    for levels in [0, 1, 2, 6, 255] {
        let of = liveupdate::DomainTablesOf { levels, ..scene.audio.of() };
        assert_eq!(outgoing.preserve_domain(&mut ctx, Token(1), of), Err(PreserveError::Levels(levels)));
    }
}

#[test]
fn tables_that_are_no_tree_are_refused_and_never_walked_for_ever() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(64), ctx());
    let machine = &scene.machine;
    // A cycle: an entry of the lower table leads back to the upper one.
    let cycle = machine.domain(4);
    let at = machine.entry(cycle, 0, 1);
    machine.set(at, cycle.top.get() | 3);
    // The same leaf table twice.
    let twice = machine.domain(3);
    machine.map(twice, 0, extent(sound().start().get(), 1));
    let leaf_table = machine.get(machine.entry(twice, 0, 1));
    machine.set(machine.entry(twice, 0x20_0000, 1), leaf_table);
    let before = machine.snapshot();
    let mut outgoing = Outgoing::new(machine, store.storage());
    outgoing.preserve_region(&mut ctx, SOUND, sound(), RegionKind::Memory).unwrap();
    for (token, domain) in [(Token(7), cycle), (Token(8), twice)] {
        let refused = outgoing.preserve_domain(&mut ctx, token, domain.of());
        assert!(matches!(refused, Err(PreserveError::TableShared(_))), "{refused:?}");
    }
    outgoing.unpreserve_region(&mut ctx, SOUND).unwrap();
    assert_eq!(machine.snapshot(), before);
}

#[test]
fn a_table_outside_the_runs_that_the_host_listed_is_named() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let before = scene.machine.snapshot();
    let mut outgoing = Outgoing::new(&scene.machine, store.storage());
    outgoing.preserve_region(&mut ctx, SOUND, sound(), RegionKind::Memory).unwrap();
    let top = scene.audio.top;
    // Three tables lie in a row: top, middle, leaves.
    for listed in [1, 2] {
        let runs = [extent(top.get(), listed)];
        let of = liveupdate::DomainTablesOf { runs: &runs, ..scene.audio.of() };
        let refused = outgoing.preserve_domain(&mut ctx, AUDIO_DOMAIN, of);
        assert!(
            matches!(refused, Err(PreserveError::TableNotListed(_) | PreserveError::TableShared(_))),
            "{refused:?}"
        );
    }
    let runs = [extent(top.get(), 3)];
    let of = liveupdate::DomainTablesOf { runs: &runs, ..scene.audio.of() };
    outgoing.preserve_domain(&mut ctx, AUDIO_DOMAIN, of).unwrap();
    outgoing.unpreserve_domain(&mut ctx, AUDIO_DOMAIN).unwrap();
    outgoing.unpreserve_region(&mut ctx, SOUND).unwrap();
    assert_eq!(scene.machine.snapshot(), before);
}

#[test]
fn leaves_of_every_size_at_every_depth_are_held_against_the_regions() {
    for (levels, level) in (3..=5).flat_map(|levels| (0..3).map(move |level| (levels, level))) {
        let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
        let frames = 1 << (9 * u64::from(level));
        let (inside, outside) = (extent(0x40_0000_0000, frames), extent(0x50_0000_0000, frames));
        // The last address that so many levels translate.
        let last = (1 << (12 + 9 * u64::from(levels))) - frames * 4096;
        let domain = scene.machine.domain(levels);
        for (iova, to) in [(0, inside), (last, inside)] {
            if level == 0 {
                scene.machine.map(domain, iova, to);
            } else {
                scene.machine.map_large(domain, iova, to.start(), level);
            }
        }
        let mut outgoing = Outgoing::new(&scene.machine, store.storage());
        outgoing.preserve_region(&mut ctx, Token(1), inside, RegionKind::Memory).unwrap();
        outgoing.preserve_domain(&mut ctx, Token(2), domain.of()).unwrap();
        let in_use = outgoing.unpreserve_region(&mut ctx, Token(1));
        assert_eq!(in_use, Err(UnpreserveError::RegionInUse { domain: Token(2), iova: Iova::new(0) }));
        outgoing.unpreserve_domain(&mut ctx, Token(2)).unwrap();
        let at = scene.machine.entry(domain, last, level);
        scene.machine.set(at, scene.machine.get(at) ^ (inside.start().get() ^ outside.start().get()));
        let refused = outgoing.preserve_domain(&mut ctx, Token(2), domain.of());
        assert_eq!(refused, Err(PreserveError::LeafOutside { iova: Iova::new(last), target: outside }));
    }
}

/// What can be preserved, and what must be there before it.
const THINGS: [(Token, &[Token]); 7] = [
    (SOUND, &[]),
    (DISK_MEMORY, &[]),
    (BAR, &[]),
    (AUDIO_DOMAIN, &[SOUND]),
    (DISK_DOMAIN, &[DISK_MEMORY, BAR]),
    (AUDIO, &[AUDIO_DOMAIN]),
    (DISK, &[DISK_DOMAIN]),
];

fn unpreserve<H: liveupdate::host::Host>(
    outgoing: &mut Outgoing<'_, '_, H>,
    ctx: &mut MaySleep,
    token: Token,
) -> Result<(), UnpreserveError> {
    match token {
        SOUND | DISK_MEMORY | BAR => outgoing.unpreserve_region(ctx, token),
        AUDIO_DOMAIN | DISK_DOMAIN => outgoing.unpreserve_domain(ctx, token),
        _ => outgoing.unpreserve_requester(ctx, token),
    }
}

/// Every permutation of `0..n` by Heap's algorithm, without recursion.
fn permutations(n: usize) -> Vec<Vec<usize>> {
    let mut current: Vec<usize> = (0..n).collect();
    let mut all = vec![current.clone()];
    let mut counters = vec![0; n];
    let mut i = 0;
    while i < n {
        if counters[i] < i {
            current.swap(if i % 2 == 0 { 0 } else { counters[i] }, i);
            all.push(current.clone());
            counters[i] += 1;
            i = 0;
        } else {
            counters[i] = 0;
            i += 1;
        }
    }
    all
}

#[test]
fn unpreserved_in_any_of_5040_orders_everything_is_byte_for_byte_as_before() {
    let scene = Scene::new();
    let before = scene.machine.snapshot();
    let (mut store, mut ctx) = (Store::of(16), ctx());
    let mut legal_orders = 0;
    for order in permutations(THINGS.len()) {
        let mut outgoing = scene.preserve(&mut store, &mut ctx);
        let mut gone: Vec<Token> = Vec::new();
        let mut refusals = 0;
        // Those refused are tried again until all are gone.
        let mut left: Vec<Token> = order.iter().map(|i| THINGS[*i].0).collect();
        while !left.is_empty() {
            left.retain(|token| {
                let mut needed_by = THINGS.iter().filter(|(t, on)| on.contains(token) && !gone.contains(t));
                let refused = unpreserve(&mut outgoing, &mut ctx, *token);
                match (needed_by.next(), refused) {
                    (None, Ok(())) => gone.push(*token),
                    (Some((user, _)), Err(UnpreserveError::RegionInUse { domain, .. })) => {
                        assert_eq!(domain, *user);
                        refusals += 1;
                    }
                    (Some((user, _)), Err(UnpreserveError::DomainInUse(who))) => {
                        let source = if *user == AUDIO { AUDIO_SOURCE } else { DISK_SOURCE };
                        assert_eq!(who, requester(source));
                        refusals += 1;
                    }
                    (needed_by, refused) => panic!("{token}: needed by {needed_by:?}, {refused:?}"),
                }
                !gone.contains(token)
            });
        }
        legal_orders += u32::from(refusals == 0);
        let totals = outgoing.totals();
        assert_eq!((totals.regions, totals.domains, totals.requesters, totals.units), (0, 0, 0, 0));
        assert_eq!((totals.aliases, totals.context_tables, totals.table_runs), (0, 0, 0));
        assert_eq!(scene.machine.snapshot().reservations, before.reservations);
    }
    assert_eq!(scene.machine.snapshot(), before);
    // Linear extensions of two chains of three and four, whose last two of the second are free among themselves.
    assert_eq!(legal_orders, 70);
}

#[test]
fn a_unit_is_preserved_once_and_goes_with_its_last_requester() {
    let (scene, mut store, mut ctx) = (Scene::new(), Store::of(16), ctx());
    let mut outgoing = scene.preserve(&mut store, &mut ctx);
    let root = scene.machine.units[0].root.get().table().frame().number();
    let roots = || {
        let reservations = scene.machine.reservations.borrow();
        reservations.iter().filter(|(run, _)| run.first().number() == root).count()
    };
    assert_eq!(roots(), 1);
    outgoing.unpreserve_requester(&mut ctx, AUDIO).unwrap();
    assert_eq!((roots(), outgoing.totals().units), (1, 1));
    outgoing.unpreserve_requester(&mut ctx, DISK).unwrap();
    assert_eq!((roots(), outgoing.totals().units), (0, 0));
    assert_eq!(outgoing.unpreserve_requester(&mut ctx, DISK), Err(UnpreserveError::Unknown(DISK)));
}

#[test]
fn lesson_17_preserving_and_unpreserving_ten_thousand_times_does_not_grow() {
    let scene = Scene::new();
    let before = scene.machine.snapshot();
    // Room for exactly what is preserved once.
    let mut store = Store::of(3);
    store.tables = vec![None; 4];
    let mut ctx = ctx();
    let mut outgoing = Outgoing::new(&scene.machine, store.storage());
    for round in 0..10_000_u64 {
        // Tokens are never the same twice.
        let token = |n| Token(1 + 3 * round + n);
        outgoing.preserve_region(&mut ctx, token(0), sound(), RegionKind::Memory).unwrap();
        outgoing.preserve_domain(&mut ctx, token(1), scene.audio.of()).unwrap();
        outgoing.preserve_requester(&mut ctx, token(2), requester(AUDIO_SOURCE)).unwrap();
        outgoing.unpreserve_requester(&mut ctx, token(2)).unwrap();
        outgoing.unpreserve_domain(&mut ctx, token(1)).unwrap();
        outgoing.unpreserve_region(&mut ctx, token(0)).unwrap();
        scene.machine.take_steps();
    }
    assert_eq!(scene.machine.snapshot(), before);
}

type Step<'a> = dyn Fn(&mut Outgoing<'_, '_, Machine>, &mut MaySleep) -> Result<(), PreserveError> + 'a;

#[test]
fn storage_that_is_used_up_is_an_error_that_names_it_and_nothing_stays() {
    for (what, kind) in ["regions", "domains", "runs of table frames", "requesters", "aliases", "units"]
        .into_iter()
        .chain(["context tables"])
        .zip(0..)
    {
        let (scene, mut store) = (Scene::new(), Store::of(16));
        match kind {
            0 => store.regions.truncate(0),
            1 => store.domains.truncate(0),
            2 => store.tables.truncate(0),
            3 => store.requesters.truncate(0),
            4 => store.aliases.truncate(0),
            5 => store.units.truncate(0),
            _ => store.contexts.truncate(1),
        }
        let mut outgoing = Outgoing::new(&scene.machine, store.storage());
        let mut before = (scene.machine.snapshot(), outgoing.totals());
        let steps: [&Step<'_>; 4] = [
            &|o, ctx| o.preserve_region(ctx, BAR, bar(), RegionKind::Device),
            &|o, ctx| o.preserve_region(ctx, DISK_MEMORY, disk_memory(), RegionKind::Memory),
            &|o, ctx| o.preserve_domain(ctx, DISK_DOMAIN, scene.disk.of()),
            &|o, ctx| o.preserve_requester(ctx, DISK, requester(DISK_SOURCE)),
        ];
        let mut refused = None;
        for step in steps {
            match step(&mut outgoing, &mut ctx()) {
                Ok(()) => before = (scene.machine.snapshot(), outgoing.totals()),
                Err(e) => {
                    refused = Some(e);
                    break;
                }
            }
        }
        let Some(PreserveError::Full(full)) = refused else { panic!("{what}: {refused:?}") };
        assert_eq!(full.what, what);
        assert_eq!((scene.machine.snapshot(), outgoing.totals()), before, "{what}");
    }
}
