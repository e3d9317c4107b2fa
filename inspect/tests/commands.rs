//! The commands as people type them.

mod common;

use clap::Parser;
use common::{containers, folder};
use holdover_inspect::cli::{self, Command, Status};
use holdover_inspect::image::{self, Options};
use serde_json::Value;
use spec::dmar::build::{Builder, Scope};
use spec::dmar::{flag, scope_kind};
use spec::{Segment, UnitId};

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

/// Runs a line of words; `{image}` stands for a folder of images. Gives back status, result, and what was said besides.
fn run(line: &str) -> (Status, String, String) {
    let data = folder("").display().to_string();
    let words: Vec<String> =
        line.split_whitespace().map(|word| word.replace("{data}", data.trim_end_matches('/'))).collect();
    let line = Line::try_parse_from(["holdover".to_owned()].into_iter().chain(words)).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = cli::run(&line.command, &mut out, &mut err);
    (status, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn json(line: &str) -> (Status, Value) {
    let (status, out, err) = run(line);
    (status, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {err}")))
}

const LEGACY: &str = "{data}/min-legacy/reach.pages.zst --registers {data}/min-legacy/vtd-regs.bin";
const SCALABLE: &str = "{data}/deb73-sm-fl/reach.pages.zst --registers {data}/deb73-sm-fl/vtd-regs.bin";

#[test]
fn inspect_shows_units_requesters_domains_and_merged_ranges() {
    let (status, out, err) = run(&format!("inspect {LEGACY}"));
    assert_eq!((status, err.as_str()), (Status::Good, ""));
    for line in [
        "unit 0: dmar0 at 0xfed90000",
        "  translation on, mode legacy, root table 0x829000",
        "  interrupt remapping on, table at 0x400000: 14 of 65536 entries present",
        "    00:02.0  domain 1 (id 3), second stage, 1032 KiB mapped",
        "domain 4: second stage, 4 levels, top table 0x8e3000",
        "  used by 00:1f.0 00:1f.2 00:1f.3",
    ] {
        assert!(out.contains(line), "{line:?} in {out}");
    }
    let (_, one, _) = run(&format!("inspect {LEGACY} -s 00:03.0"));
    assert!(one.contains("00:03.0") && !one.contains("00:02.0"), "{one}");
    let (_, all, _) = run(&format!("inspect {LEGACY} -v"));
    assert_eq!(all.lines().filter(|line| line.contains("  4 KiB  0x")).count(), 553, "every leaf once");
}

#[test]
fn json_says_which_schema_it_is_and_agrees_with_the_text() {
    let (status, value) = json(&format!("inspect {SCALABLE} --json"));
    assert_eq!(status, Status::Good);
    assert_eq!(value["schema"], "holdover.inspect/1");
    assert_eq!(value["units"][0]["mode"], "scalable");
    assert_eq!(value["units"][0]["requesters"].as_array().unwrap().len(), 7);
    let domains = value["domains"].as_array().unwrap();
    let leaves: u64 =
        domains.iter().flat_map(|d| d["leaves"].as_array().unwrap()).map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(leaves, 561);
    assert!(domains.iter().all(|domain| domain["stage"] == "first"));
    let (_, value) = json("inspect {data}/kho/kho.pages.zst --format json");
    assert_eq!(value["handovers"][0]["preserved"].as_array().unwrap().len(), 29);
    assert_eq!(value["handovers"][0]["luo"]["sessions"][0]["files"][0]["memfd"]["folios"], 1024);
}

#[test]
fn a_page_needs_nothing_else_and_holds_every_range() {
    let (status, page, _) = run(&format!("inspect {LEGACY} --format html"));
    assert_eq!(status, Status::Good);
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>"));
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    let (_, value) = json(&format!("inspect {LEGACY} --json"));
    let ranges: usize =
        value["domains"].as_array().unwrap().iter().map(|d| d["ranges"].as_array().unwrap().len()).sum();
    assert_eq!(page.matches("<tr class=\"range\"").count(), ranges);
    assert!(page.contains("<svg") && page.contains("class=\"target\""));
}

#[test]
fn a_file_of_the_debugfs_format_comes_without_its_name() {
    let (_, out, _) =
        run(&format!("inspect {LEGACY} --format debugfs --file domain_translation_struct -s 00:03.0"));
    assert!(out.starts_with("Device 0000:00:03.0 @0x8be000\nIOVA_PFN "), "{out}");
    assert_eq!(out.lines().count(), 2 + 24);
}

#[test]
fn a_dmar_table_gives_units_the_names_segments_and_order_that_they_have_in_linux() {
    let folder = std::env::temp_dir().join(format!("holdover-units-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("dmar");
    let mut table = [0; 512];
    let mut builder = Builder::new(&mut table, 39, 0).unwrap();
    let scope =
        Scope { kind: scope_kind::PCI_ENDPOINT, flags: 0, enumeration_id: 0, start_bus: 0, path: &[(2, 0)] };
    let all = flag::INCLUDE_PCI_ALL;
    for (base, flags, segment) in [(0xa000, 0, 0), (0xb000, all, 0), (0xc000, 0, 0), (0xd000, all, 1)] {
        let scopes = if flags == 0 { std::slice::from_ref(&scope) } else { &[] };
        builder.drhd(UnitId { segment: Segment(segment), register_base: base }, flags, 0, scopes).unwrap();
    }
    let used = builder.finish().unwrap().len();
    std::fs::write(&path, &table[..used]).unwrap();
    let windows = ["d000", "a000", "b000", "c000"];
    let windows =
        windows.map(|base| format!("--registers {base}={{data}}/min-legacy/vtd-regs.bin")).join(" ");
    let line = format!(
        "inspect {{data}}/min-legacy/reach.pages.zst {windows} --dmar {} --format debugfs",
        path.display()
    );
    let (_, out, err) = run(&line);
    std::fs::remove_dir_all(&folder).unwrap();
    let heads: Vec<&str> = out.lines().filter(|line| line.contains("Register Base Address")).collect();
    let units = ["dmar2 c000", "dmar0 a000", "dmar1 b000", "dmar3 d000"].map(|unit| {
        let (name, base) = unit.split_once(' ').unwrap();
        format!("IOMMU: {name} Register Base Address: {base}")
    });
    assert_eq!(heads, units, "{err}");
    let names: Vec<&str> = out.lines().filter(|line| line.contains(":00:02.0/")).collect();
    assert_eq!(names.len(), 2, "once in each segment: {names:?}");
    assert!(out.contains("\nDevice 0001:00:02.0 @"));
}

#[test]
fn a_translation_is_followed_step_by_step() {
    let (status, value) = json(&format!("translate {LEGACY} 00:03.0 0xfffe0abc --json"));
    assert_eq!(status, Status::Good);
    assert_eq!(value["outcome"]["target"], "0xb7cabc");
    let steps: Vec<&str> =
        value["steps"].as_array().unwrap().iter().filter_map(|s| s["at"].as_str()).collect();
    assert_eq!(steps, ["0x829000", "0x89f180", "0x8be000", "0xb47018", "0xb48ff8", "0xb49f00"]);
    let (status, value) = json(&format!("translate {SCALABLE} 00:1f.2 0x123456 --json"));
    assert_eq!(
        (status, &value["outcome"]["target"]),
        (Status::Good, &Value::from("0x123456")),
        "a large leaf"
    );
    assert_eq!(value["outcome"]["leaf_bytes"], 2 << 20);
}

#[test]
fn faults_carry_the_code_that_hardware_would_record() {
    let cases: [(&str, &str, u64, u64); 9] = [
        // Write only: reads are refused.
        (LEGACY, "00:02.0 0xffefd000", 0x06, 0),
        (LEGACY, "00:02.0 0x1000", 0x06, 0x05),
        (LEGACY, "00:05.0 0x1000", 0x02, 0x02),
        (LEGACY, "01:00.0 0x1000", 0x01, 0x01),
        (LEGACY, "00:02.0 0x1000000000000", 0x04, 0x04),
        (LEGACY, "00:02.0:5 0x1000", 0x31, 0x31),
        (SCALABLE, "00:02.0 0x1000", 0x71, 0x71),
        (SCALABLE, "00:02.0 0x800000000000", 0x80, 0x80),
        (SCALABLE, "00:02.0:7 0xffefd000", 0x45, 0x45),
    ];
    for (image, request, read, write) in cases {
        let (status, value) = json(&format!("translate {image} {request} --json"));
        let code = |what: &str| value["outcome"][what]["reason"].as_u64().unwrap_or(0);
        assert_eq!((code("read_refused"), code("write_refused")), (read, write), "{request}: {value}");
        assert_eq!(status, if write == 0 { Status::Good } else { Status::Bad }, "{request}");
    }
    let (_, out, _) = run(&format!("translate {LEGACY} 00:02.0 0xfee00000"));
    assert!(out.contains("an interrupt message"), "{out}");
}

#[test]
fn what_the_image_lacks_is_said_to_be_missing_not_absent() {
    let (status, out, _) = run("inspect {data}/min-legacy/reach.pages.zst --rtaddr 0x10000");
    assert_eq!(status, Status::Bad);
    assert!(out.contains("PROBLEM  root table at 0x10000: the image does not hold it"), "{out}");
    let (status, out, _) = run("translate {data}/min-legacy/reach.pages.zst --rtaddr 0x10000 00:02.0 0x1000");
    assert_eq!(status, Status::Bad);
    assert!(out.contains("cannot be known: the image does not hold the root entry at 0x10000"), "{out}");
}

#[test]
fn reach_names_everyone_and_every_entry() {
    let (status, value) = json(&format!("reach {LEGACY} 0xf3c123 --json"));
    assert_eq!(status, Status::Good);
    let ways = value["ways"].as_array().unwrap();
    let iovas: Vec<&str> = ways.iter().map(|way| way["iova"].as_str().unwrap()).collect();
    assert_eq!(iovas, ["0xffefd000", "0xffefe000"], "mapped twice");
    assert!(
        ways.iter().all(|way| way["source"] == "00:02.0" && way["write"] == true && way["read"] == false)
    );
    assert_eq!(ways[0]["entries"].as_array().unwrap().len(), 4);
    let (_, out, _) = run(&format!("reach {LEGACY} 0x8e3000"));
    assert!(
        out.contains("is: page table of level 3 of domain 4") && out.contains("no requester reaches it"),
        "{out}"
    );
    let (_, out, _) = run(&format!("reach {LEGACY} 0x829000"));
    assert!(out.contains("is: root table of dmar0"), "{out}");
}

#[test]
fn registers_by_hand_do_as_well_as_registers_from_a_file() {
    let (_, from_file, _) = run(&format!("inspect {LEGACY} --format debugfs --file dmar_translation_struct"));
    let (_, by_hand, _) = run(
        "inspect {data}/min-legacy/reach.pages.zst --rtaddr 829000 --format debugfs --file dmar_translation_struct",
    );
    assert_eq!(from_file, by_hand);
    let text = "inspect {data}/min-legacy/reach.pages.zst --registers {data}/min-legacy/regset.txt --json";
    let (_, with_text) = json(text);
    assert_eq!(with_text["units"][0]["requesters"].as_array().unwrap().len(), 7);
}

#[test]
fn every_form_of_registers_leads_to_the_same_tables() {
    let data = |name: &str| std::fs::read(folder("min-legacy").join(name)).unwrap();
    let folder = std::env::temp_dir().join(format!("holdover-registers-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("page.bin");
    std::fs::write(&path, [data("vtd-regs.bin"), vec![0; 0x1000 - 0x230]].concat()).unwrap();
    let show = |registers: &str| {
        run(&format!(
            "inspect {{data}}/min-legacy/reach.pages.zst {registers} --format debugfs --file dmar_translation_struct"
        ))
    };
    let (status, expected, _) = show("--registers {data}/min-legacy/vtd-regs.bin");
    assert!(status == Status::Good && expected.lines().count() > 8, "{expected}");
    for registers in [
        "--registers {data}/min-legacy/vtd-regs.txt",
        "--registers {data}/min-legacy/regset.txt",
        "--registers fed90000={data}/min-legacy/vtd-regs.bin",
        "--registers fed90000={data}/min-legacy/regset.txt",
        "--rtaddr 0x829000 --irta 0x40000f --iqa 0x1cc000 --cap 0x80d2008c222f0606 --ecap 0xf00f4a --gsts 0xc7000000",
        &format!("--registers {}", path.display()),
    ] {
        let (status, out, err) = show(registers);
        assert_eq!(
            (status, out.as_str(), err.as_str()),
            (Status::Good, expected.as_str(), ""),
            "{registers}"
        );
    }
    let (_, out, _) = run(
        "inspect {data}/min-legacy/reach.pages.zst --registers {data}/min-legacy/vtd-regs.bin --registers fed91000={data}/min-legacy/vtd-regs.bin",
    );
    assert!(
        out.contains("unit 0: dmar0 at 0xfed90000") && out.contains("unit 1: dmar1 at 0xfed91000"),
        "{out}"
    );
    std::fs::write(&path, "IOMMU: dmar1 Register Base Address: fed91000\nRTADDR 0x20 0x829000\n\nIOMMU: dmar0 Register Base Address: fed90000\nRTADDR 0x20 0x829000\n").unwrap();
    let (_, value) =
        json(&format!("inspect {{data}}/min-legacy/reach.pages.zst --registers {} --json", path.display()));
    assert_eq!(value["units"].as_array().unwrap().len(), 2, "{}", value["units"]);
    let image = "inspect {data}/min-legacy/reach.pages.zst --registers";
    for (registers, reason) in [
        ("{data}/min-legacy/reach.pages.zst", "no register window"),
        ("{data}/min-legacy/linux-debugfs.txt.zst", "no register window"),
        ("fed91000={data}/min-legacy/regset.txt", "its unit lies at 0xfed90000, not at 0xfed91000"),
        ("{data}/kho/khowalk.txt", "khowalk.txt"),
        (
            "{data}/min-legacy/vtd-regs.bin --registers {data}/min-legacy/regset.txt",
            "the unit at 0xfed90000 twice",
        ),
    ] {
        let (status, out, err) = run(&format!("{image} {registers}"));
        assert_eq!((status, out.as_str()), (Status::Failed, ""), "{registers}");
        assert!(err.contains(reason), "{registers}: {err}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_unit_that_does_not_translate_lets_everybody_everywhere() {
    let off = format!("{LEGACY} --gsts 0");
    let (status, out, _) = run(&format!("inspect {off}"));
    assert_eq!(status, Status::Good);
    for words in [
        "translation OFF, mode legacy",
        "interrupt remapping OFF, table at 0x400000",
        "invalidation queue OFF",
    ] {
        assert!(out.contains(words), "{words}: {out}");
    }
    let (status, value) = json(&format!("translate {off} 00:05.0 0x1234 --json"));
    assert_eq!((status, &value["outcome"]["target"]), (Status::Good, &Value::from("0x1234")));
    let (status, value) = json(&format!("reach {off} 0x8e3000 --json"));
    assert_eq!(
        (status, &value["units_off"], &value["ways"]),
        (Status::Good, &serde_json::json!([0]), &serde_json::json!([]))
    );
    let (_, out, _) = run(&format!("reach {off} 0x8e3000"));
    assert!(out.contains("unit 0 does not translate") && !out.contains("no requester"), "{out}");
    let (_, value) = json(&format!("verify {off} --json"));
    let rule = value["invariants"].as_array().unwrap().iter().find(|line| line["invariant"] == "I8").unwrap();
    assert_eq!(rule["violations"], 1);
    // Interrupt remapping alone is off: the table is shown, and said to be out of use.
    let (_, value) = json(&format!("inspect {LEGACY} --gsts 0xc4000000 --json"));
    assert_eq!(
        (&value["units"][0]["translating"], &value["units"][0]["interrupts"]["on"]),
        (&Value::from(true), &Value::from(false))
    );
}

#[test]
fn a_root_table_that_the_image_lacks_leaves_it_open_who_reaches_a_frame() {
    let (status, out, _) = run("reach {data}/min-legacy/reach.pages.zst --rtaddr 0x10000 0x8e3000");
    assert_eq!(status, Status::Bad);
    assert!(out.contains("NOT KNOWN: tables of unit 0") && !out.contains("no requester"), "{out}");
}

#[test]
fn a_machine_is_captured_from_its_files_and_the_capture_answers_as_they_do() {
    let folder = std::env::temp_dir().join(format!("holdover-capture-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).display().to_string();
    let packed =
        image::open(&common::folder("min-legacy").join("reach.pages.zst"), Options::default()).unwrap();
    let content: Vec<(u64, Vec<u8>)> = packed
        .runs()
        .iter()
        .map(|run| {
            let mut out = vec![0; run.bytes as usize];
            packed.read_bytes(spec::PhysAddr::new(run.start), &mut out).unwrap();
            (run.start, out)
        })
        .collect();
    let segments: Vec<_> = content.iter().map(|(at, bytes)| containers::load(*at, bytes)).collect();
    std::fs::write(file("kcore"), containers::Elf::default().build(&segments)).unwrap();
    // One unit, which is all there is: its structure, behind a header.
    let mut dmar =
        b"DMAR\x40\0\0\0\x01\0MAKER TABLE   \0\0\0\0TOOL\0\0\0\0\x26\x01\0\0\0\0\0\0\0\0\0\0".to_vec();
    dmar.extend([0, 0, 16, 0, 1, 0, 0, 0]);
    dmar.extend(0xfed9_0000_u64.to_le_bytes());
    dmar[9] = dmar.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    std::fs::write(file("dmar"), &dmar).unwrap();
    let line = format!(
        "capture -o {} --memory {} --dmar {} --regset {{data}}/min-legacy/regset.txt",
        file("out.pages"),
        file("kcore"),
        file("dmar")
    );
    let (status, said) = json(&format!("{line} --json"));
    let bytes = std::fs::metadata(file("out.pages")).unwrap().len();
    assert_eq!((status, said["pages"].as_u64().unwrap() * 4104 + 16), (Status::Good, bytes), "{said}");
    assert_eq!(
        (&said["schema"], &said["units"], &said["whole"], &said["output"]),
        (
            &Value::from("holdover.capture/1"),
            &Value::from(1),
            &Value::from(true),
            &Value::from(file("out.pages"))
        )
    );
    let show = |what: &str| run(&format!("inspect {what} --format debugfs --file dmar_translation_struct")).1;
    assert_eq!(show(&file("out.pages")), show(LEGACY));
    let (status, out, _) = run(&line);
    assert!(status == Status::Good && out.starts_with("1 units, "), "{out}");
    // What is not there is named, with what to do; nothing is written then.
    std::fs::remove_file(file("out.pages")).unwrap();
    for (from, to, reason) in [
        ("dmar", "nothing", "no remapping hardware, or not root"),
        ("kcore", "nothing", "No such file"),
        ("kcore", "dmar", "for raw memory"),
        ("dmar", "kcore", "signature"),
    ] {
        let line = line.replace(&file(from), &file(to));
        let (status, out, err) = run(&line);
        assert_eq!((status, out.as_str()), (Status::Failed, ""), "{line}: {err}");
        assert!(err.contains(reason), "{line}: {err}");
        assert!(!folder.join("out.pages").exists());
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_scratch_of_a_policy_is_where_no_preserved_run_may_reach() {
    let folder = std::env::temp_dir().join(format!("holdover-scratch-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("policy.json");
    let rule = |scratch: &str| {
        std::fs::write(&path, format!(r#"{{ "scratch": {scratch} }}"#)).unwrap();
        let (_, value) =
            json(&format!("verify {{data}}/kho/kho.pages.zst --rtaddr 0 --json --policy {}", path.display()));
        let lines = value["invariants"].as_array().unwrap().clone();
        let line = lines.into_iter().find(|line| line["invariant"] == "I9").unwrap();
        (line["checkable"].as_bool().unwrap(), line["violations"].as_u64().unwrap())
    };
    let (_, shown) = json("inspect {data}/kho/kho.pages.zst --json");
    let first = &shown["handovers"][0]["preserved"][0];
    let start = u64::from_str_radix(first["start"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(rule("[]"), (false, 0), "none is named: nothing can be said");
    assert_eq!(rule(&format!(r#"[{{ "start": "{start:#x}", "bytes": "0x1000" }}]"#)), (true, 1));
    assert_eq!(rule(&format!(r#"[{{ "start": "{:#x}", "bytes": "0x1000" }}]"#, start - 0x1000)), (true, 0));
    let everything = rule(r#"[{ "start": "0", "bytes": "0x100000000" }]"#);
    assert!(everything.0 && everything.1 >= 29, "{everything:?}");
    for slip in
        [r#"[{ "start": "0x1000" }]"#, r#"[{ "start": "8g", "bytes": "0x1000" }]"#, r#"{ "start": "0" }"#]
    {
        std::fs::write(&path, format!(r#"{{ "scratch": {slip} }}"#)).unwrap();
        let (status, _, err) =
            run(&format!("verify {{data}}/kho/kho.pages.zst --rtaddr 0 --policy {}", path.display()));
        assert!(status == Status::Failed && err.contains("policy.json"), "{slip}: {err}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_machine_without_a_dmar_table_says_what_that_may_mean() {
    if std::fs::metadata("/sys/firmware/acpi/tables/DMAR").is_ok() {
        return;
    }
    let (status, out, err) = run("dmar");
    assert_eq!((status, out.as_str()), (Status::Failed, ""));
    assert!(err.contains("no remapping hardware") && err.contains("name a file"), "{err}");
}

#[test]
fn what_cannot_be_answered_ends_with_status_2_and_a_reason() {
    for (line, reason) in [
        ("inspect {data}/nothing", "No such file"),
        ("inspect {data}/min-legacy/regset.txt", "neither a page file nor an ELF core"),
        ("inspect {data}/min-legacy/reach.pages.zst --registers {data}/kho/khowalk.txt", "khowalk.txt"),
        ("reach {data}/kho/kho.pages.zst 0x1000", "no registers are known"),
        ("dmar {data}/kho/khowalk.txt", "signature"),
    ] {
        let (status, out, err) = run(line);
        assert_eq!((status, out.as_str()), (Status::Failed, ""), "{line}");
        assert!(err.contains(reason), "{line}: {err}");
    }
}

#[test]
fn two_images_are_told_apart_in_terms_of_requesters_and_ranges() {
    let (status, out, _) = run(&format!("diff {LEGACY} {{data}}/min-legacy/reach.pages.zst"));
    assert_eq!((status, out.as_str()), (Status::Good, "no difference\n"), "with the registers of the first");
    let (status, value) = json(&format!(
        "diff {LEGACY} {{data}}/min-sm-sl/reach.pages.zst --other-registers {{data}}/min-sm-sl/vtd-regs.bin --json"
    ));
    assert_eq!((status, &value["schema"]), (Status::Bad, &Value::from("holdover.diff/1")));
    let found = value["differences"].as_array().unwrap();
    let mode = found.iter().find(|difference| difference["subject"] == "dmar0, mode").unwrap();
    assert_eq!((&mode["from"], &mode["to"]), (&Value::from("legacy"), &Value::from("scalable")));
    let (status, out, _) = run("diff {data}/kho/kho.pages.zst {data}/ours/reach.pages.zst");
    assert_eq!(status, Status::Bad);
    assert_eq!(out.lines().filter(|line| line.starts_with("- preserved memory: ")).count(), 29, "{out}");
    assert!(out.contains("+ dmar0, requester 00:02.0: second stage"), "{out}");
}

#[test]
fn an_extract_carries_the_registers_along() {
    let folder = std::env::temp_dir().join(format!("holdover-inspect-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let small = folder.join("small.pages");
    let (status, said) = json(&format!("extract {LEGACY} -o {} --json", small.display()));
    assert_eq!((status, &said["schema"]), (Status::Good, &Value::from("holdover.extract/1")));
    assert_eq!((&said["units"], &said["whole"]), (&Value::from(1), &Value::from(true)));
    assert_eq!(said["output"], small.to_str().unwrap());
    // Each page, and its address in front.
    let bytes = std::fs::metadata(&small).unwrap().len();
    assert_eq!(said["pages"].as_u64().unwrap() * 4104 + 16, bytes);
    let (_, whole, _) = run(&format!("inspect {LEGACY} --format debugfs"));
    let (_, again, _) = run(&format!("inspect {} --format debugfs", small.display()));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(whole, again);
}

#[test]
fn a_verdict_is_a_status() {
    let (status, value) = json("verify {data}/ours/reach.pages.zst --json");
    assert_eq!(
        (status, &value["schema"], &value["holds"]),
        (Status::Good, &Value::from("holdover.verify/1"), &Value::from(true))
    );
    let (status, out, _) = run(&format!("verify {LEGACY}"));
    assert_eq!(status, Status::Bad);
    assert!(out.contains("I2   FAILS") && out.contains("00:02.0 could still write 1032 KiB"), "{out}");
}

#[test]
fn a_policy_from_a_file_changes_the_verdict_and_a_slip_in_it_is_an_error() {
    let folder = std::env::temp_dir().join(format!("holdover-policy-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("policy.json");
    let with = |text: &str, image: &str| {
        std::fs::write(&path, text).unwrap();
        run(&format!("verify {image} --json --policy {}", path.display()))
    };
    let violations = |out: &str, number: &str| {
        let value: Value = serde_json::from_str(out).unwrap();
        let lines = value["invariants"].as_array().unwrap().clone();
        lines.iter().find(|line| line["invariant"] == number).unwrap()["violations"].as_u64().unwrap()
    };
    let (_, nothing, _) = with("{}", LEGACY);
    assert_eq!(violations(&nothing, "I2"), 7);
    let (status, some, _) = with(r#"{ "preserved_requesters": ["00:02.0", "00:03.0"] }"#, LEGACY);
    assert_eq!((status, violations(&some, "I2")), (Status::Bad, 5), "its tables are lost all the same");
    let (_, all, _) = with(r#"{ "targets": [{ "start": "0", "bytes": "0x8000000" }] }"#, LEGACY);
    assert_eq!((violations(&nothing, "I3") > 0, violations(&all, "I3")), (true, 0));
    for slip in ["{ \"preserved\": [] }", "{ \"scratch\": [{ \"start\": \"0\" }] }", "[]", "{"] {
        let (status, out, err) = with(slip, LEGACY);
        assert_eq!((status, out.as_str()), (Status::Failed, ""), "{slip}");
        assert!(err.contains("policy.json"), "{err}");
    }
    let (status, _, err) = with("{}", "{data}/ours/reach.pages.zst");
    assert_eq!(status, Status::Good);
    assert!(err.contains("the policy changes nothing"), "{err}");
    std::fs::remove_dir_all(&folder).unwrap();
}
