//! The cut-off: whoever and whichever PASID is not preserved is gone, in the right order.
use crate::common::scalable::*;
use crate::common::unit::Blocked;

#[test]
fn whoever_is_not_preserved_is_cut_off_pasid_by_pasid() {
    let scene = Scene::new();
    scene.update();
    scene.all_is_well();
    for stranger in STRANGERS {
        assert!(scene.machine.dma(stranger, IOVA).is_err(), "{stranger}");
    }
    for pasid in STRAY_PASIDS {
        assert_eq!(scene.machine.request(NIC_SOURCE, Some(pasid), IOVA), Err(Blocked::Pasid));
    }
}
