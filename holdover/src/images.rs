//! The kernels, as the build script built them into this program, and the bundle that the first one is booted with.

// Its own first lines document it.
#[path = "../../kernel/src/bundle.rs"]
pub mod bundle;

/// The first kernel, an ELF file that QEMU boots.
pub const KERNEL_A: &[u8] = include_bytes!(env!("HOLDOVER_KERNEL_A"));
const KERNEL_B: &[u8] = include_bytes!(env!("HOLDOVER_KERNEL_B"));
/// In place of b where it shall be a kernel for legacy mode alone.
const KERNEL_B_LEGACY: &[u8] = include_bytes!(env!("HOLDOVER_KERNEL_B_LEGACY"));
const KERNEL_C: &[u8] = include_bytes!(env!("HOLDOVER_KERNEL_C"));

/// The bundle for a number of updates: the kernels that follow the first one, at most two of them. `legacy`: the next one
/// is a kernel that drives units in legacy mode alone.
///
/// # Panics
/// When a kernel of this build does not fit into a bundle: a mistake of the build.
#[must_use]
pub fn bundle(updates: u8, legacy: bool) -> Vec<u8> {
    let version = env!("HOLDOVER_KERNEL_VERSION");
    let b = if legacy { ("b-legacy", KERNEL_B_LEGACY) } else { ("b", KERNEL_B) };
    let releases = [(format!("{version}-{}", b.0), b.1), (format!("{version}-c"), KERNEL_C)];
    let images: Vec<_> =
        releases.iter().take(updates.into()).map(|(name, image)| (name.as_str(), *image)).collect();
    bundle::build(&images).expect("the kernels of this build fit into a bundle")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_holds_a_kernel_for_each_update_in_order() {
        for updates in [1, 2] {
            let bytes = bundle(updates, false);
            let bundle = bundle::Bundle::parse(&bytes).unwrap();
            assert_eq!(bundle.count(), usize::from(updates));
            assert!(bundle.image(0).unwrap().release.ends_with("-b"));
            assert!(bundle.image(0).unwrap().bytes.starts_with(b"\x7fELF"));
        }
    }

    #[test]
    fn a_kernel_for_legacy_mode_takes_the_place_of_the_next_one() {
        let bytes = bundle(2, true);
        let bundle = bundle::Bundle::parse(&bytes).unwrap();
        assert!(bundle.image(0).unwrap().release.ends_with("-b-legacy"));
        assert!(bundle.image(1).unwrap().release.ends_with("-c"));
    }

    #[test]
    fn the_three_kernels_are_three_images() {
        assert_ne!(KERNEL_A, KERNEL_B);
        assert_ne!(KERNEL_A, KERNEL_C);
        assert_ne!(KERNEL_B, KERNEL_C);
    }
}
