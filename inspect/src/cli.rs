//! The commands that look at images: arguments, and what runs them.
//!
//! [`Command`] is meant to be flattened into a larger command line. [`run`] writes results to one stream and everything
//! else to another, and says how it went: 0 when nothing is wrong, 1 when something is, 2 when the question could not be
//! answered.

mod load;

pub use load::{ImageArgs, Loaded};

use crate::capture::{self, Sources};
use crate::format::{debugfs, html, json, text};
use crate::model::FindKho;
use crate::translate::{self, Asker};
use crate::verify::{self, Policy, Stage};
use crate::{diff, dmar, reach};
use clap::{Args, Subcommand, ValueEnum};
use spec::{PhysAddr, SourceId};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Where Linux shows this machine's DMAR table.
const OWN_DMAR: &str = "/sys/firmware/acpi/tables/DMAR";

/// Commands that look at memory images and tables.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what remapping tables and handovers an image of memory holds
    Inspect(InspectArgs),
    /// Make one translation step by step, as hardware would
    Translate(TranslateArgs),
    /// Show who can read or write a frame, through which entries
    Reach(ReachArgs),
    /// Check the invariants of a live update on an image: what a jump would do
    Verify(VerifyArgs),
    /// Show what changed between two images
    Diff(DiffArgs),
    /// Keep of an image only what the other commands look at, as a page file of a few kilobytes
    Extract(ExtractArgs),
    /// Keep the remapping tables of this machine as a page file (as root)
    Capture(CaptureArgs),
    /// Show a DMAR table and everything odd about it
    Dmar(DmarArgs),
}

/// How a model is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// For programs: schema holdover.inspect/1
    Json,
    /// The columns of Linux's debugfs files
    Debugfs,
    /// One page that needs nothing else
    Html,
}

/// Files of the `debugfs` format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DebugfsFile {
    /// Root, context and PASID entries
    #[value(name = "dmar_translation_struct")]
    Dmar,
    /// Interrupt tables
    #[value(name = "ir_translation_struct")]
    Interrupts,
    /// Registers
    #[value(name = "iommu_regset")]
    Registers,
    /// Invalidation queues
    #[value(name = "invalidation_queue")]
    Queue,
    /// Page tables of the requester given with -s
    #[value(name = "domain_translation_struct")]
    Domain,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Memory: an ELF core, a compressed dump, a page file (VTDPAGE1), or raw with --base; packed with zstd or not
    #[arg(required_unless_present = "qmp")]
    image: Option<PathBuf>,
    #[command(flatten)]
    load: ImageArgs,
    /// How it is shown
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Only what concerns this requester, as in 00:1f.2
    #[arg(short, long, value_name = "BDF", value_parser = translate::parse_source)]
    source: Option<SourceId>,
    /// Every leaf, every descriptor, every run
    #[arg(short, long)]
    verbose: bool,
    /// With --format debugfs: only this file, without its name
    #[arg(long, value_enum, value_name = "NAME")]
    file: Option<DebugfsFile>,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Arguments of `translate`.
#[derive(Debug, Args)]
#[command(override_usage = "holdover translate [OPTIONS] [IMAGE] <BDF[:PASID]> <IOVA>")]
pub struct TranslateArgs {
    /// The image (none with --qmp); who asks: BUS:DEVICE.FUNCTION in hex, and a PASID in decimal or 0x; the address that is
    /// asked for, in hex
    #[arg(required = true, value_name = "WORDS")]
    words: Vec<String>,
    #[command(flatten)]
    load: ImageArgs,
    /// The unit, by its register base, where several know the requester
    #[arg(long, value_name = "ADDRESS", value_parser = load::number)]
    unit: Option<u64>,
    /// As JSON: schema holdover.translate/1
    #[arg(long)]
    json: bool,
}

/// Arguments of `reach`.
#[derive(Debug, Args)]
#[command(override_usage = "holdover reach [OPTIONS] [IMAGE] <PHYS>")]
pub struct ReachArgs {
    /// The image (none with --qmp); a physical address within the frame, in hex
    #[arg(required = true, value_name = "WORDS")]
    words: Vec<String>,
    #[command(flatten)]
    load: ImageArgs,
    /// As JSON: schema holdover.reach/1
    #[arg(long)]
    json: bool,
}

/// At which point of an update an image was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum At {
    /// In the outgoing kernel, sealed but not cut off
    Sealed,
    /// In the incoming kernel, before it adopts
    Arrived,
}

/// Arguments of `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Memory: an ELF core, a compressed dump, a page file (VTDPAGE1), or raw with --base; packed with zstd or not
    #[arg(required_unless_present = "qmp")]
    image: Option<PathBuf>,
    #[command(flatten)]
    load: ImageArgs,
    /// At which point the image was taken, for handovers of ours
    #[arg(long, value_enum, default_value = "sealed")]
    stage: At,
    /// Who is meant to go on, and where they may reach: JSON
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Every violation
    #[arg(short, long)]
    verbose: bool,
    /// As JSON: schema holdover.verify/1
    #[arg(long)]
    json: bool,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The first image: an ELF core, a page file (VTDPAGE1), or raw with --base; packed with zstd or not
    image: PathBuf,
    #[command(flatten)]
    load: ImageArgs,
    /// The second image; registers are taken to be those of the first, unless it carries its own or some are given
    #[arg(value_name = "OTHER")]
    other: PathBuf,
    /// Registers of the second image's units, as with --registers
    #[arg(long, value_name = "[BASE=]FILE")]
    other_registers: Vec<String>,
    /// The second image is raw memory that starts at this physical address
    #[arg(long, value_name = "ADDRESS", value_parser = load::number)]
    other_base: Option<u64>,
    /// As JSON: schema holdover.diff/1
    #[arg(long)]
    json: bool,
}

/// Arguments of `extract`.
#[derive(Debug, Args)]
pub struct ExtractArgs {
    /// Memory: an ELF core, a compressed dump, a page file (VTDPAGE1), or raw with --base; packed with zstd or not
    #[arg(required_unless_present = "qmp")]
    image: Option<PathBuf>,
    #[command(flatten)]
    load: ImageArgs,
    /// The page file to write; it carries the registers along
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// As JSON: schema holdover.extract/1
    #[arg(long)]
    json: bool,
}

/// Arguments of `capture`.
#[derive(Debug, Args)]
pub struct CaptureArgs {
    /// The page file to write; it carries the registers along
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Where the handover's root tree lies: an address, "scan" to look in every frame, "no" not to look
    #[arg(long, value_name = "WHERE", default_value = "no", value_parser = load::parse_kho)]
    kho: FindKho,
    /// Memory as an ELF core, or /dev/mem [default: /proc/kcore, or /dev/mem on a kernel without it]
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
    /// The DMAR table
    #[arg(long, value_name = "FILE", default_value = OWN_DMAR)]
    dmar: PathBuf,
    /// Registers in the kernel's words; where they are not there, hardware is read through /dev/mem
    #[arg(long, value_name = "FILE", default_value = "/sys/kernel/debug/iommu/intel/iommu_regset")]
    regset: PathBuf,
    /// As JSON: schema holdover.capture/1
    #[arg(long)]
    json: bool,
}

/// Arguments of `dmar`.
#[derive(Debug, Args)]
pub struct DmarArgs {
    /// The table [default: this machine's]
    file: Option<PathBuf>,
    /// As JSON: schema holdover.dmar/1
    #[arg(long)]
    json: bool,
}

/// Why a question could not be answered.
pub type Failure = String;

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Nothing is wrong.
    Good = 0,
    /// Something is wrong with what was looked at.
    Bad = 1,
    /// The question could not be answered.
    Failed = 2,
}

impl Status {
    const fn of(good: bool) -> Self {
        if good { Self::Good } else { Self::Bad }
    }
}

/// Runs a command. The result goes to `out`, everything else to `err`.
pub fn run(command: &Command, out: &mut dyn Write, err: &mut dyn Write) -> Status {
    let status = match command {
        Command::Inspect(arguments) => inspect(arguments, out, err),
        Command::Translate(arguments) => translate(arguments, out, err),
        Command::Reach(arguments) => reach(arguments, out, err),
        Command::Verify(arguments) => verify(arguments, out, err),
        Command::Diff(arguments) => diff(arguments, out, err),
        Command::Extract(arguments) => extract(arguments, out, err),
        Command::Capture(arguments) => capture(arguments, out),
        Command::Dmar(arguments) => dmar(arguments, out),
    };
    status.unwrap_or_else(|error| {
        // When nothing can be said, the status says it.
        let _ = writeln!(err, "error: {error}");
        Status::Failed
    })
}

fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        // Whoever closes the pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|error| format!("cannot write the result: {error}")),
    }
}

fn pretty(out: &mut dyn Write, value: &serde_json::Value) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

fn inspect(arguments: &InspectArgs, out: &mut dyn Write, err: &mut dyn Write) -> Result<Status, Failure> {
    let loaded = arguments.load.load(arguments.image.as_deref(), err)?;
    let status = Status::of(loaded.model.is_whole());
    match &arguments.output {
        None => written(show(arguments, &loaded, out))?,
        Some(path) => {
            let failed = |error| format!("cannot write {}: {error}", path.display());
            let mut file = io::BufWriter::new(std::fs::File::create(path).map_err(failed)?);
            show(arguments, &loaded, &mut file).and_then(|()| file.flush()).map_err(failed)?;
        }
    }
    Ok(status)
}

/// What is looked at, without its folder.
fn name(arguments: &InspectArgs) -> String {
    let file = arguments.image.as_deref().and_then(Path::file_name);
    file.map_or_else(|| "a running machine".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The image, unless a running machine is looked at, and the `N` words behind it.
fn split<'a, const N: usize>(
    words: &'a [String],
    load: &ImageArgs,
) -> Result<(Option<&'a Path>, [&'a str; N]), Failure> {
    let (image, rest) = match words.split_first() {
        Some((image, rest)) if !load.is_live() => (Some(Path::new(image)), rest),
        _ => (None, words),
    };
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let given = rest.len();
    let image_words = if load.is_live() { "" } else { " behind the image" };
    let rest =
        rest.try_into().map_err(|_| format!("{N} words are needed{image_words}, {given} are given"))?;
    Ok((image, rest))
}

fn show(arguments: &InspectArgs, loaded: &Loaded, out: &mut dyn Write) -> io::Result<()> {
    let Loaded { memory, model } = loaded;
    let format = if arguments.json { Format::Json } else { arguments.format };
    match format {
        Format::Text => {
            let options = text::Options { source: arguments.source, verbose: arguments.verbose };
            text::all(out, memory, model, options)
        }
        Format::Json => pretty(out, &json::all(memory, model, arguments.source)),
        Format::Html => out.write_all(html::page(memory, model, &name(arguments)).as_bytes()),
        Format::Debugfs => match arguments.file {
            None => debugfs::all(out, memory, model),
            Some(DebugfsFile::Dmar) => debugfs::dmar_translation_struct(out, model),
            Some(DebugfsFile::Interrupts) => debugfs::ir_translation_struct(out, model),
            Some(DebugfsFile::Registers) => debugfs::iommu_regset(out, model),
            Some(DebugfsFile::Queue) => debugfs::invalidation_queue(out, model),
            Some(DebugfsFile::Domain) => match arguments.source {
                Some(source) => debugfs::domains_of(out, memory, model, source),
                None => debugfs::devices(model)
                    .into_iter()
                    .try_for_each(|device| debugfs::domain_translation_struct(out, memory, model, device)),
            },
        },
    }
}

fn translate(arguments: &TranslateArgs, out: &mut dyn Write, err: &mut dyn Write) -> Result<Status, Failure> {
    let (image, [asker, iova]) = split(&arguments.words, &arguments.load)?;
    let (asker, iova) = (asker.parse::<Asker>()?, load::number(iova)?);
    let Loaded { memory, model } = arguments.load.load(image, err)?;
    let by_base = |base| model.units.iter().find(|unit| unit.registers.base == base);
    let unit = match arguments.unit {
        Some(base) => {
            by_base(base).ok_or_else(|| format!("no registers are known of a unit at {base:#x}"))?
        }
        None => {
            let knows = |unit: &&crate::model::Unit| {
                unit.requesters.iter().any(|requester| requester.source == asker.source)
            };
            let known = model.units.iter().find(knows).or(model.units.first());
            known.ok_or("no registers are known: give --registers or --rtaddr")?
        }
    };
    let translation = translate::translate(&memory, &unit.registers, model.hardware, asker, iova);
    written(if arguments.json {
        pretty(out, &json::translation(&translation))
    } else {
        text::translation(out, &translation)
    })?;
    Ok(Status::of(translation.outcome.passes()))
}

fn reach(arguments: &ReachArgs, out: &mut dyn Write, err: &mut dyn Write) -> Result<Status, Failure> {
    let (image, [address]) = split(&arguments.words, &arguments.load)?;
    let address = load::number(address)?;
    let Loaded { memory, model } = arguments.load.load(image, err)?;
    if model.units.is_empty() {
        return Err("no registers are known: give --registers or --rtaddr".into());
    }
    let frame = PhysAddr::new(address).frame().start();
    let roles = reach::roles(&model, frame);
    let found = reach::reach(&memory, &model, frame);
    written(if arguments.json {
        pretty(out, &json::reach(frame, &roles, &found))
    } else {
        text::reach(out, frame, &roles, &found)
    })?;
    Ok(Status::of(found.is_certain()))
}

fn verify(arguments: &VerifyArgs, out: &mut dyn Write, err: &mut dyn Write) -> Result<Status, Failure> {
    let policy = match &arguments.policy {
        None => Policy::default(),
        Some(path) => {
            let bytes = load::small_file(path)?;
            Policy::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))?
        }
    };
    let stage = match arguments.stage {
        At::Sealed => Stage::Sealed,
        At::Arrived => Stage::Arrived,
    };
    let Loaded { memory, model } = arguments.load.load(arguments.image.as_deref(), err)?;
    if arguments.policy.is_some() && model.handovers.iter().any(|kho| kho.records.is_some()) {
        // What cannot be said is not what was asked for.
        let _ =
            writeln!(err, "note: a handover of ours says by itself who goes on; the policy changes nothing");
    }
    let report = verify::verify(&memory, &model, stage, &policy)?;
    written(if arguments.json {
        pretty(out, &verify::json(&report))
    } else {
        verify::text(out, &report, arguments.verbose)
    })?;
    Ok(Status::of(report.holds()))
}

fn diff(arguments: &DiffArgs, out: &mut dyn Write, err: &mut dyn Write) -> Result<Status, Failure> {
    let image = Some(arguments.image.as_path());
    let other = Some(arguments.other.as_path());
    let with = |registers| arguments.load.other(registers, arguments.other_base);
    let a = arguments.load.load(image, err)?;
    let mut b = with(Some(&arguments.other_registers)).load(other, err)?;
    if b.model.units.is_empty() && !a.model.units.is_empty() {
        b = with(None).load(other, err)?;
    }
    let found = diff::diff(&a.model, &b.model);
    written(if arguments.json { pretty(out, &diff::to_json(&found)) } else { diff::text(out, &found) })?;
    Ok(Status::of(found.is_empty()))
}

fn extract(arguments: &ExtractArgs, out: &mut dyn Write, err: &mut dyn Write) -> Result<Status, Failure> {
    let Loaded { memory, model } = arguments.load.load(arguments.image.as_deref(), err)?;
    let failed = |error| format!("cannot write {}: {error}", arguments.output.display());
    let mut file = io::BufWriter::new(std::fs::File::create(&arguments.output).map_err(failed)?);
    let pages = crate::extract::write(&mut file, &memory, &model).map_err(failed)?;
    file.flush().map_err(failed)?;
    let whole = model.is_whole();
    written(if arguments.json {
        pretty(out, &wrote("holdover.extract/1", pages, &arguments.output, model.units.len(), whole))
    } else {
        writeln!(out, "{pages} pages written to {}", arguments.output.display())
    })?;
    Ok(Status::of(whole))
}

fn capture(arguments: &CaptureArgs, out: &mut dyn Write) -> Result<Status, Failure> {
    let sources = Sources {
        memory: arguments.memory.clone(),
        dmar: arguments.dmar.clone(),
        regset: arguments.regset.clone(),
        ..Sources::default()
    };
    let failed = |error| format!("cannot write {}: {error}", arguments.output.display());
    let mut bytes = Vec::new();
    let captured = capture::capture(&sources, arguments.kho, &mut bytes)?;
    std::fs::write(&arguments.output, &bytes).map_err(failed)?;
    let (pages, units) = (captured.pages, captured.units.len());
    let whole = captured.model.is_whole();
    written(if arguments.json {
        pretty(out, &wrote("holdover.capture/1", pages, &arguments.output, units, whole))
    } else {
        writeln!(out, "{units} units, {pages} pages written to {}", arguments.output.display())
    })?;
    Ok(Status::of(whole))
}

/// What became of a page file.
fn wrote(schema: &str, pages: usize, output: &Path, units: usize, whole: bool) -> serde_json::Value {
    let output = output.to_string_lossy();
    serde_json::json!({ "schema": schema, "output": output, "pages": pages, "units": units, "whole": whole })
}

fn dmar(arguments: &DmarArgs, out: &mut dyn Write) -> Result<Status, Failure> {
    let own = || {
        let hint = "no remapping hardware, or firmware keeps it off, or not root; name a file to look at another table";
        load::small_file(Path::new(OWN_DMAR)).map_err(|error| format!("{error} ({hint})"))
    };
    let path = arguments.file.clone().unwrap_or_else(|| OWN_DMAR.into());
    let bytes = arguments.file.as_deref().map_or_else(own, load::small_file)?;
    let report = dmar::examine(&bytes).map_err(|error| format!("{}: {error}", path.display()))?;
    written(if arguments.json { pretty(out, &dmar::json(&report)) } else { dmar::text(out, &report) })?;
    Ok(Status::of(!report.must_refuse()))
}
