//! What the command says to those who ask it for something that it cannot do.

use std::process::Command;

fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_holdover")).arg("update").args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn values_that_make_no_sense_are_refused_by_their_option() {
    for (arguments, word) in [
        (["--address-width", "57"], "--address-width"),
        (["--memory", "12"], "256M"),
        (["--memory", "lots"], "--memory"),
        (["--updates", "3"], "--updates"),
        (["--mutant", "none"], "no-cut-off"),
        (["--machine", "bochs"], "builtin"),
        (["--timeout", "0"], "--timeout"),
        (["--seed", "-"], "--seed"),
        (["--mode", "nested"], "second-stage"),
        (["--scenario", "none"], "narrow-queue"),
    ] {
        let errors = refusal(&arguments);
        assert!(errors.contains(word), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_qemu_that_was_named_and_cannot_run_is_no_reason_for_another_machine() {
    for machine in ["auto", "qemu"] {
        let errors = refusal(&["--machine", machine, "--qemu", "/nowhere/qemu"]);
        assert!(errors.contains("/nowhere/qemu"), "{errors}");
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    assert!(refusal(&["--machine", "builtin", "--qemu", "x"]).contains("--qemu"));
    assert!(refusal(&["--machine", "builtin", "--icount"]).contains("--icount"));
}

#[test]
fn a_scenario_that_mode_or_machine_does_not_carry_is_refused_with_what_to_do() {
    let narrow = refusal(&["--machine", "builtin", "--scenario", "narrow-queue"]);
    assert!(narrow.contains("--mode second-stage"), "{narrow}");
    let registers =
        refusal(&["--machine", "builtin", "--scenario", "registers-only", "--mode", "first-stage"]);
    assert!(registers.contains("--mode legacy"), "{registers}");
}

#[test]
fn scenarios_are_listed_one_line_each_and_as_one_object() {
    let list = |more: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_holdover")).arg("scenarios").args(more).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    let object: serde_json::Value = serde_json::from_str(&list(&["--json"])).unwrap();
    assert_eq!(object["schema"], "holdover.scenarios/1");
    let names =
        object["scenarios"].as_array().unwrap().iter().map(|scenario| scenario["name"].as_str().unwrap());
    let text = list(&[]);
    let lines: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(names.collect::<Vec<_>>(), lines);
    assert!(lines.contains(&"demo"));
}

#[test]
fn every_option_is_documented() {
    let output = Command::new(env!("CARGO_BIN_EXE_holdover")).args(["update", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let page = include_str!("../../docs/update.md");
    let options: Vec<&str> =
        help.lines().filter_map(|l| l.trim_start().strip_prefix("--")?.split([' ', '=']).next()).collect();
    assert!(options.len() >= 15, "{options:?}");
    for option in options {
        let found = [" ", "`"].iter().any(|end| page.contains(&format!("`--{option}{end}")));
        assert!(found, "--{option} is not documented");
    }
}

fn said(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_holdover")).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that `--help` lists.
fn commands() -> Vec<String> {
    let help = said(&["--help"]);
    let list = help.split_once("Commands:\n").unwrap().1.lines().take_while(|line| !line.is_empty());
    list.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .filter(|name| name != "help")
        .collect()
}

#[test]
fn every_command_has_a_manual_page_with_all_its_options() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    said(&["man", "--out", out.to_str().unwrap()]);
    let commands = commands();
    for name in [
        "update",
        "scenarios",
        "inspect",
        "translate",
        "reach",
        "verify",
        "diff",
        "extract",
        "capture",
        "dmar",
    ] {
        assert!(commands.iter().any(|command| command == name), "{name} in {commands:?}");
    }
    for name in &commands {
        let page = std::fs::read_to_string(out.join(format!("holdover-{name}.1"))).unwrap();
        let help = said(&[name, "--help"]);
        for option in help.lines().filter_map(|l| l.trim_start().strip_prefix("--")?.split([' ', '=']).next())
        {
            // Hyphens are written so that nobody takes them for dashes.
            let written = format!("\\-\\-{}", option.replace('-', "\\-"));
            assert!(page.contains(&written), "--{option} in the page of {name}");
        }
    }
    let first = std::fs::read_to_string(out.join("holdover.1")).unwrap();
    assert!(commands.iter().all(|name| first.contains(&format!("holdover\\-{name}(1)"))), "{first}");
    let failed = Command::new(env!("CARGO_BIN_EXE_holdover")).args(["man", "--out", "/dev/null/x"]).output();
    assert_eq!(failed.unwrap().status.code(), Some(2));
}

#[test]
fn shells_are_told_every_command_and_its_options() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = said(&["completions", shell]);
        for word in commands().iter().map(String::as_str).chain(["registers-at", "qmp", "address-width"]) {
            assert!(script.contains(word), "{word} for {shell}");
        }
    }
}
