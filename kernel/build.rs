//! Links the releases, each at the start of its scratch area.

#[allow(dead_code, unreachable_pub)] // the library uses the rest
#[path = "src/layout.rs"]
mod layout;

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rustc-link-arg-bins=-T{root}/link.ld");
    let releases = [
        ("kernel-a", layout::S0),
        ("kernel-b", layout::S1),
        ("kernel-b-legacy", layout::S1),
        ("kernel-c", layout::S0),
    ];
    for (release, area) in releases {
        let (base, limit) = (area.start, area.image().end);
        println!("cargo:rustc-link-arg-bin={release}=-Wl,--defsym=IMAGE_BASE={base:#x}");
        println!("cargo:rustc-link-arg-bin={release}=-Wl,--defsym=IMAGE_LIMIT={limit:#x}");
    }
    println!("cargo:rerun-if-changed=link.ld");
    println!("cargo:rerun-if-changed=src/layout.rs");
}
