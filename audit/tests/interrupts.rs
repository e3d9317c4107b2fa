//! Interrupt remapping in the audit: a sound table, every way of damaging it, and foreign bytes.

mod world;

use holdover_audit::{Invariant, Item, RecordKind, Role, Stage, What};
use spec::PhysAddr;
use spec::handover::{InterruptEntry, InterruptTable, kind};
use spec::interrupt::{PostedEntry, RemappedEntry};
use spec::regs::{Gsts, Irta};
use spec::xxh64::hash;
use world::{A_TOKEN, B_TOKEN, BASE, SMALL, World, requester};
use zerocopy::{FromBytes, IntoBytes};

/// Two frames of table on unit 0.
const TABLE: u64 = 0x4c0_0000;
const ENTRIES: u32 = 512;
/// Of 00:02.0, of the alias 03:00.0, of a stranger, of 00:03.0 (posted), and of 00:02.0 in the second frame.
const OWN: u32 = 1;
const ALIAS: u32 = 2;
const STRANGER: u32 = 5;
const POSTED: u32 = 9;
const FAR: u32 = 300;
const DESCRIPTOR: u64 = SMALL + 0x1040;

fn remapped(sid: u64) -> RemappedEntry {
    RemappedEntry::ZERO.with_present(true).with_v(0x41).with_sid(sid).with_svt(1)
}

fn posted(sid: u64, descriptor: u64) -> PostedEntry {
    let entry = PostedEntry::ZERO.with_present(true).with_im(true).with_vv(0x33).with_sid(sid).with_svt(1);
    entry.with_pda_low(descriptor >> 6 & 0x3ff_ffff).with_pda_high(descriptor >> 32)
}

struct Interrupts {
    world: World,
    table: InterruptTable,
    entries: Vec<InterruptEntry>,
}

fn at(index: u32) -> u64 {
    TABLE + 16 * u64::from(index)
}

impl Interrupts {
    fn build(stage: Stage) -> Self {
        let mut world = if stage == Stage::Sealed { World::sealed() } else { World::arrived() };
        world.memory.exist(TABLE, 0x2000);
        world.preserved.push((TABLE, 0x2000));
        let kept = [
            (OWN, 0, remapped(0x10).raw()),
            (ALIAS, 1, remapped(0x300).raw()),
            (POSTED, 1, posted(0x18, DESCRIPTOR).raw()),
            (FAR, 0, remapped(0x10).with_v(0x42).raw()),
        ];
        for (index, _, words) in kept {
            world.memory.write(at(index), &words);
        }
        let irta = Irta::ZERO.with_irta(TABLE >> 12).with_s(8);
        world.states[0].interrupts = Some(irta);
        world.states[0].status = world.states[0].status.with_ires(true).with_irtps(true);
        let digest = hash(0, &world.memory.bytes(TABLE, 16 * u64::from(ENTRIES)));
        if stage == Stage::Sealed {
            world.memory.write(at(STRANGER), &remapped(0x20).raw());
        }
        let table = InterruptTable { irta: irta.raw(), digest, unit: 0, entries: 4 };
        let entries = kept.map(|(index, requester, entry)| InterruptEntry {
            entry,
            unit: 0,
            requester,
            index,
            reserved: 0,
        });
        Self { world, table, entries: entries.into() }.seal()
    }

    fn sealed() -> Self {
        Self::build(Stage::Sealed)
    }
    fn arrived() -> Self {
        Self::build(Stage::Arrived)
    }

    /// Writes the records again.
    fn seal(mut self) -> Self {
        self.world.others = vec![(kind::INTERRUPT_TABLE, self.table.as_bytes().to_vec())];
        let entries = self.entries.iter().map(|e| (kind::INTERRUPT_ENTRY, e.as_bytes().to_vec()));
        self.world.others.extend(entries);
        (self.world.header.records, self.world.header.bytes) = (0, 0);
        self.world.seal();
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self.seal()
    }

    /// The digest of the table as it is.
    fn digest(&mut self) {
        self.table.digest = hash(0, &self.world.memory.bytes(TABLE, 16 * u64::from(ENTRIES)));
    }
}

#[test]
fn a_sound_table_has_no_finding_before_the_cut_off_or_after_it() {
    for (stage, to_cut_off) in [(Stage::Sealed, 1), (Stage::Arrived, 0)] {
        let (report, findings) = Interrupts::build(stage).world.audit().expect("readable");
        assert_eq!(findings, []);
        assert_eq!((report.totals.kept_interrupts, report.totals.interrupts_to_cut_off), (4, to_cut_off));
    }
}

#[test]
fn a_handover_without_interrupt_records_says_nothing_of_a_unit_that_remaps_none() {
    assert_eq!(World::arrived().findings(), []);
}

#[test]
fn i1_a_unit_that_remaps_interrupts_without_a_record_is_found() {
    for (stage, ordinal) in [(Stage::Sealed, 0), (Stage::Arrived, 0), (Stage::Arrived, 1)] {
        let mut world = if stage == Stage::Sealed { World::sealed() } else { World::arrived() };
        world.states[ordinal].status = world.states[ordinal].status.with_ires(true);
        let found = world.only();
        assert_eq!((found.invariant, found.what), (Invariant::I1, What::InterruptsNotHandedOver));
        assert_eq!(found.unit, Some(world.states[ordinal].id));
    }
}

#[test]
fn i1_a_unit_with_nothing_preserved_reads_no_interrupt_table_after_the_jump() {
    let mut world = World::arrived();
    let mut state = world.states[0];
    state.id.register_base = 0xfed9_8000;
    state.status = Gsts::ZERO.with_ires(true);
    world.states.push(state);
    assert_eq!(world.only().what, What::InterruptsNotHandedOver);
}

#[test]
fn i1_every_frame_of_the_table_is_preserved() {
    let damaged = Interrupts::arrived().with(|i| {
        i.world.preserved.retain(|(start, _)| *start != TABLE);
        i.world.preserved.push((TABLE, 0x1000));
    });
    let found = damaged.world.only();
    assert_eq!((found.invariant, found.what), (Invariant::I1, What::NotPreserved(Role::InterruptTable)));
    assert_eq!(found.at, TABLE + 0x1000);
}

#[test]
fn i1_a_table_that_cannot_be_read_or_lies_on_another_is_found() {
    let damaged = Interrupts::arrived().with(|i| i.world.memory.remove(TABLE + 0x1000));
    damaged.world.find(|what| *what == What::Unreadable(Role::InterruptTable));
    let damaged = Interrupts::arrived().with(|i| {
        i.table.irta = Irta::ZERO.with_irta(world::CONTEXT_0 >> 12).raw();
    });
    damaged.world.find(|what| matches!(what, What::TablesOverlap { .. }));
    let damaged = Interrupts::arrived().with(|i| {
        i.table.irta = Irta::ZERO.with_irta(SMALL >> 12).raw();
    });
    damaged.world.find(|what| matches!(what, What::TableInRegion { role: Role::InterruptTable, .. }));
}

#[test]
fn i2_a_present_entry_of_somebody_else_is_found_after_the_jump() {
    let damaged = Interrupts::arrived().with(|i| i.world.memory.write(at(STRANGER), &remapped(0x20).raw()));
    let findings = damaged.world.findings();
    assert!(findings.iter().all(|f| f.requester == Some(requester(0, 0, 4, 0)) && f.domain.is_none()));
    let found = damaged.world.find(|what| matches!(what, What::InterruptNotOwned { .. }));
    assert_eq!((found.invariant, found.what), (Invariant::I2, What::InterruptNotOwned { index: STRANGER }));
    assert_eq!(found.at, at(STRANGER));
}

#[test]
fn i2_an_entry_by_which_more_than_a_preserved_requester_may_ask_belongs_to_nobody() {
    let cases = [
        remapped(0x10).with_svt(0),
        remapped(0x10).with_svt(3),
        // 00:02.0 to 00:02.3: the others are not preserved.
        remapped(0x10).with_sq(2),
        // Buses 0 to 0 have other requesters, buses 0 to 3 are those of 00:03.0 and its alias.
        remapped(0x0004).with_svt(2),
        remapped(0x0300).with_svt(2),
        // On another unit.
        remapped(0x500),
    ];
    for entry in cases {
        let damaged = Interrupts::arrived().with(|i| i.world.memory.write(at(OWN), &entry.raw()));
        let found = damaged.world.find(|what| matches!(what, What::InterruptNotOwned { .. }));
        assert_eq!(found.what, What::InterruptNotOwned { index: OWN }, "{entry:?}");
    }
    let bridge = remapped(0x0003).with_svt(2);
    let sound = Interrupts::arrived().with(|i| {
        i.world.memory.write(at(ALIAS), &bridge.raw());
        i.entries[1].entry = bridge.raw();
        i.digest();
    });
    assert_eq!(sound.world.findings(), [], "a range from the requester's bus to its alias's");
}

#[test]
fn i3_a_posted_entry_writes_to_preserved_memory_only() {
    for descriptor in [0x2000_0000, world::DEVICE, 0x12_3456_7840] {
        let damaged = Interrupts::arrived().with(|i| {
            let entry = posted(0x18, descriptor).raw();
            i.world.memory.write(at(POSTED), &entry);
            i.entries[2].entry = entry;
            i.digest();
        });
        let found = damaged.world.only();
        assert_eq!((found.invariant, found.what), (Invariant::I3, What::PostedOutside { descriptor }));
        assert_eq!((found.requester, found.domain), (Some(requester(0, 0, 3, 0)), Some(B_TOKEN)));
    }
}

#[test]
fn i1_reserved_bits_of_either_format_are_found() {
    for (index, entry, bits) in [
        (OWN, [remapped(0x10).raw()[0] | 1 << 12, remapped(0x10).raw()[1]], 1 << 12),
        (OWN, [remapped(0x10).raw()[0], remapped(0x10).raw()[1] | 1 << 40], 1 << 40),
        (POSTED, [posted(0x18, DESCRIPTOR).raw()[0] | 1 << 30, posted(0x18, DESCRIPTOR).raw()[1]], 1 << 30),
    ] {
        let damaged = Interrupts::arrived().with(|i| {
            i.world.memory.write(at(index), &entry);
            let record = i.entries.iter_mut().find(|e| e.index == index).expect("recorded");
            record.entry = entry;
            i.digest();
        });
        assert_eq!(damaged.world.only().what, What::ReservedBits { bits });
    }
}

#[test]
fn i4_an_entry_that_changed_went_or_came_is_found_with_its_requester() {
    let other = remapped(0x10).with_v(0x99).raw();
    let damaged = Interrupts::arrived().with(|i| i.world.memory.write(at(OWN), &other));
    let found =
        damaged.world.find(|what| matches!(what, What::Differs { item: Item::InterruptEntryLow, .. }));
    assert_eq!((found.invariant, found.at, found.domain), (Invariant::I4, at(OWN), Some(A_TOKEN)));
    damaged.world.find(|what| matches!(what, What::Differs { item: Item::InterruptDigest, .. }));
    assert!(damaged.world.findings().iter().all(|f| f.requester == Some(requester(0, 0, 2, 0))));

    let damaged = Interrupts::arrived().with(|i| i.world.memory.write(at(FAR), &[0, 0]));
    damaged.world.find(|what| *what == What::InterruptNotPresent { index: FAR });
    damaged.world.find(|what| matches!(what, What::Differs { item: Item::InterruptEntries, .. }));

    let damaged = Interrupts::arrived().with(|i| {
        i.world.memory.write(at(20), &other);
    });
    damaged.world.find(|what| *what == What::InterruptNotListed { index: 20 });
}

#[test]
fn i4_what_an_absent_entry_leaves_behind_differs_from_what_was_sealed() {
    let damaged = Interrupts::arrived().with(|i| i.world.memory.write(at(20) + 8, &[0x77]));
    let found = damaged.world.only();
    assert!(matches!(found.what, What::Differs { item: Item::InterruptDigest, .. }), "{found}");
    assert_eq!(found.requester, None);
}

#[test]
fn i4_the_register_must_name_the_table_that_was_sealed() {
    let damaged = Interrupts::arrived().with(|i| {
        i.world.states[0].interrupts = i.world.states[0].interrupts.map(|irta| irta.with_s(7));
    });
    let found = damaged.world.only();
    assert!(matches!(found.what, What::Differs { item: Item::Irta, .. }));
    let absent = Interrupts::arrived().with(|i| i.world.states[0].interrupts = None);
    assert!(matches!(absent.world.only().what, What::Differs { item: Item::Irta, found: 0, .. }));
}

#[test]
fn i8_interrupt_remapping_stays_on() {
    let damaged =
        Interrupts::arrived().with(|i| i.world.states[0].status = i.world.states[0].status.with_ires(false));
    let found = damaged.world.only();
    assert_eq!((found.invariant, found.what), (Invariant::I8, What::InterruptRemappingOff));
    assert_eq!(found.at, BASE + 0x1c);
}

#[test]
fn records_that_refer_to_nothing_or_speak_twice_are_found() {
    let dangling = Interrupts::arrived().with(|i| i.entries[0].requester = 77);
    dangling.world.find(|what| {
        *what == What::Dangling { from: RecordKind::InterruptEntry, to: RecordKind::Requester, ordinal: 77 }
    });
    let beyond = Interrupts::arrived().with(|i| i.entries[0].index = 0x1_0000);
    beyond.world.find(|what| *what == What::BadRange(RecordKind::InterruptEntry));
    let twice = Interrupts::arrived().with(|i| i.entries.push(i.entries[0]));
    twice.world.find(|what| *what == What::RecordTwice(RecordKind::InterruptEntry));
    let other = Interrupts::arrived().with(|i| i.entries[0].requester = 1);
    other.world.find(|what| matches!(what, What::Differs { item: Item::InterruptRequester, .. }));
    let mut tables = Interrupts::arrived();
    tables.world.others.push((kind::INTERRUPT_TABLE, tables.table.as_bytes().to_vec()));
    (tables.world.header.records, tables.world.header.bytes) = (0, 0);
    tables.world.seal();
    tables.world.find(|what| *what == What::RecordTwice(RecordKind::InterruptTable));
}

#[test]
fn foreign_records_of_interrupts_never_panic() {
    for seed in 0..300u64 {
        let mut i = Interrupts::sealed();
        let random = |n: u64| hash(seed, &n.to_le_bytes());
        let word = |n: u64| if random(n) & 3 == 0 { random(n + 1000) } else { random(n) & 0x3ff };
        let raw: Vec<u8> = (0..3).flat_map(|n| word(n).to_le_bytes()).collect();
        let mut table = InterruptTable::read_from_bytes(&raw).expect("24 bytes");
        if seed % 2 == 0 {
            (table.irta, table.unit) = (i.table.irta ^ (random(7) & 0xf), 0);
        }
        i.table = table;
        for (n, entry) in (10..).step_by(10).zip(&mut i.entries) {
            entry.entry = [word(n), word(n + 1)];
            (entry.unit, entry.requester, entry.index) =
                (word(n + 2) as u32 % 3, word(n + 3) as u32 % 5, word(n + 4) as u32);
        }
        for n in 0..64 {
            i.world.memory.write(at(n), &[random(u64::from(n) + 50), random(u64::from(n) + 90)]);
        }
        i.world.states[0].interrupts = Some(Irta::from_raw(i.table.irta));
        let i = i.seal();
        assert!(!i.world.findings().is_empty());
    }
    assert!(PhysAddr::new(TABLE).is_aligned(4096));
}
