//! Runs that never took place, for tests: one that is clean, and one in which everything went wrong that can.

use crate::judge::judge;
use crate::record::{Ended, Record, Serial};
use crate::report::Report;
use crate::settings::Settings;
use crate::sound::{Frame, Tune};
use crate::trace;
use scenario::event::{Checked, Event, Violation};

/// Frames of silence before the tune.
const LEADING: usize = 480;
/// Frames of the tune that are played.
const PLAYED: usize = 20_000;

pub(crate) fn settings() -> Settings {
    Settings {
        scenario: crate::scenarios::DEMO,
        mode: scenario::story::Mode::Legacy,
        memory_bytes: 512 << 20,
        address_width: 48,
        seed: 1,
        poison: true,
        updates: 1,
        icount: false,
        mutant: None,
        timeout_seconds: 120,
        qemu_arguments: Vec::new(),
        wav: None,
        keep: None,
    }
}

/// A short tune with no frame twice.
pub(crate) fn tune() -> Tune {
    Tune::new(
        (0..8000i32)
            .map(|i| [(f64::from(i) * 0.03).sin().mul_add(9000.0, f64::from(i % 7)) as i16, i as i16])
            .collect(),
    )
}

fn recording() -> Vec<Frame> {
    let tune = tune();
    let mut recording = vec![[0, 0]; LEADING];
    recording.extend((0..PLAYED).map(|i| tune.frame(i)));
    recording.extend([[0, 0]; 100]);
    recording
}

const TRACE: &str = "\
vtd_reg_dmar_root addr 0x3000000 scalable 0
vtd_dmar_enable enable 1
vtd_dmar_translate dev 00:04.00 iova 0x10000 -> gpa 0x4000000 mask 0xfff
vtd_reg_write addr 0x3c size 0x4 value 0x1001
vtd_dmar_translate dev 00:02.00 iova 0x20000 -> gpa 0x5000000 mask 0xfff
vtd_dmar_translate dev 00:03.00 iova 0x20000 -> gpa 0x5000000 mask 0xfff
vtd_dmar_translate dev 01:00.00 iova 0x30000 -> gpa 0x6000000 mask 0xfff
vtd_reg_write addr 0x3c size 0x4 value 0x1002
vtd_reg_write addr 0x3c size 0x4 value 0x1003
vtd_reg_write addr 0x3c size 0x4 value 0x1004
vtd_reg_write addr 0x3c size 0x4 value 0x1005
vtd_dmar_fault sid 0x20 fault 2 addr 0x10000 write 1
vtd_reg_write addr 0x3c size 0x4 value 0x1006
vtd_dmar_fault sid 0x100 fault 2 addr 0x11000 write 1
vtd_reg_write addr 0x3c size 0x4 value 0x1007
vtd_dmar_translate dev 00:02.00 iova 0x21000 -> gpa 0x5001000 mask 0xfff
vtd_reg_write addr 0x3c size 0x4 value 0x1008
vtd_dmar_enable enable 0
";

/// The record of a clean run.
pub(crate) fn record() -> Record {
    Record {
        machine: "qemu".into(),
        machine_version: "10.0.2".into(),
        serial: Serial { events: events(), ..Serial::default() },
        ended: Ended::Well,
        sound: Ok(recording()),
        account: Ok(trace::read(TRACE.as_bytes()).unwrap()),
    }
}

/// The record of a run that completed and should not have.
pub(crate) fn dirty_record() -> Record {
    let mut record = record();
    for event in &mut record.serial.events {
        match event {
            Event::Target { requester, intact, first_difference } if requester == "0000:01:00.0" => {
                (*intact, *first_difference) = (false, Some(0x700_0000));
            }
            Event::Capture { complete, .. } => *complete = false,
            Event::Audit { when, violations, .. } if when == "after_jump" => violations.push(Violation {
                invariant: "I2".into(),
                requester: "0000:01:00.0".into(),
                address: 0x300_1000,
                words: "a present context entry belongs to nobody".into(),
            }),
            _ => {}
        }
    }
    let sound = record.sound.as_mut().unwrap();
    sound[9000..9400].fill([0x5555, 0x5555]);
    sound.drain(12_000..12_010);
    let trace = TRACE
        .replace("value 0x1005\n", "value 0x1005\nvtd_dmar_enable enable 0\nvtd_dmar_enable enable 1\n")
        .replace(
            "vtd_dmar_fault sid 0x100 fault 2 addr 0x11000 write 1",
            "vtd_dmar_translate dev 01:00.00 iova 0x11000 -> gpa 0x7000000 mask 0xfff",
        );
    record.account = Ok(trace::read(trace.as_bytes()).unwrap());
    record
}

pub(crate) fn clean() -> Report {
    judge(&settings().asked(), &record(), &tune()).report
}

pub(crate) fn dirty() -> Report {
    judge(&settings().asked(), &dirty_record(), &tune()).report
}

fn phase(kernel: &str, phase: &str, start_us: u64, duration_us: u64) -> Event {
    let (start_ns, duration_ns) = (1_000_000 + start_us * 1000, duration_us * 1000);
    Event::Phase { kernel: kernel.into(), phase: phase.into(), start_ns, duration_ns }
}

fn checks() -> Vec<Checked> {
    let check = |invariant: &str, what: &str, count| Checked {
        invariant: invariant.into(),
        what: what.into(),
        count,
    };
    vec![
        check("I1", "table frames are preserved", 23),
        check("I2", "present entries belong to preserved requesters", 2),
        check("I3", "leaves point into preserved regions", 1200),
    ]
}

fn preserved(requester: &str, domain_id: u16) -> Event {
    Event::Preserved {
        requester: requester.into(),
        aliases: vec![],
        domain_id,
        token: format!("device/{requester}"),
    }
}

fn doomed(requester: &str, listed: bool) -> [Event; 1] {
    [Event::ToCutOff {
        requester: requester.into(),
        aliases: vec![],
        listed,
        target_start: 0x700_0000,
        target_bytes: 4096,
    }]
}

fn fault(requester: &str, address: u64, in_gap: bool) -> Event {
    Event::Fault {
        unit: "0000@0xfed90000".into(),
        requester: requester.into(),
        pasid: None,
        address,
        reason: 2,
        words: "the context entry is not present".into(),
        write: true,
        who: "cut_off".into(),
        in_gap,
    }
}

fn boot(kernel: &str, update: u64, at: u64) -> Event {
    Event::Boot {
        kernel: kernel.into(),
        update,
        home_start: 1 << 20,
        home_bytes: 47 << 20,
        memory_bytes: 512 << 20,
        at,
    }
}

fn events() -> Vec<Event> {
    let (a, b, unit) = ("0.1.0-a", "0.1.0-b", "0000@0xfed90000");
    let mut events = vec![
        boot(a, 0, 1_000_000),
        Event::Unit {
            unit: unit.into(),
            version: "1.0".into(),
            cap: 0x00d2_008c_222f_0606,
            ecap: 0x00f0_0f4a,
            status: 0,
            root: 0,
            mode: "legacy".into(),
        },
        phase(a, "start the devices", 500, 150_000),
        Event::PreservedRegion { token: "region/tune".into(), start: 0x500_0000, bytes: 1 << 20 },
        preserved("0000:00:02.0", 1),
        preserved("0000:00:03.0", 2),
    ];
    events.extend(doomed("0000:00:04.0", true));
    events.extend(doomed("0000:01:00.0", false));
    events.extend([
        phase(a, "preserve", 150_500, 400),
        Event::Audit { when: "before_jump".into(), checked: checks(), violations: vec![] },
        phase(a, "freeze", 151_000, 900),
        Event::Handover {
            fdt: 0x800_0000,
            blob_start: 0x800_1000,
            blob_bytes: 1832,
            digest: 0x1234,
            preserved_frames: 600,
            extents: 9,
        },
        Event::CutOff {
            unit: unit.into(),
            cleared: vec!["0000:00:04.0".into(), "0000:01:00.0".into()],
            kept: vec!["0000:00:02.0".into(), "0000:00:03.0".into()],
            pasids: vec![],
            confirmed: true,
        },
        phase(a, "cut off", 151_900, 80),
        Event::Position { moment: "jump".into(), frames: 7200, at: 153_100_000 },
        boot(b, 1, 153_200_000),
        phase(b, "poison", 152_300, 15_000),
        Event::Audit { when: "after_jump".into(), checked: checks(), violations: vec![] },
        phase(b, "adopt", 168_000, 2000),
        Event::Adopted { unit: unit.into(), domain_ids: vec![1, 2], at: 171_850_000 },
        Event::Position { moment: "adopted".into(), frames: 8100, at: 171_850_000 },
        fault("0000:00:04.0", 0x1_0000, true),
        fault("0000:01:00.0", 0x1_1000, false),
        Event::Target { requester: "0000:00:04.0".into(), intact: true, first_difference: None },
        Event::Target { requester: "0000:01:00.0".into(), intact: true, first_difference: None },
        Event::Transfer {
            requester: "0000:00:03.0".into(),
            busy_at_jump: true,
            complete: true,
            correct: true,
        },
        Event::Capture { requester: "0000:00:02.0".into(), frames: 5000, complete: true },
        Event::Content { token: "region/tune".into(), intact: true },
        phase(b, "judge", 171_000, 240_000),
        Event::Done { kernel: b.into(), update: 1, at: 420_000_000 },
    ]);
    events
}
