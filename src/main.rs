use fewlabel::model::{bench::*, pct_net::PctNetConfig, DeviceChoice};
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let c = if a[1]=="s" {PctNetConfig::pct_net_s(8, [64,128,128], 1)} else {PctNetConfig::pct_net(8, [64,128,128], 1)};
    let w = if a[2]=="f" {Work::Forward} else {Work::TrainingStep};
    let p = if a[3]=="0" {[32,64,64]} else {[64,128,128]};
    println!("{:?}", measure(w, &c, p, 3, DeviceChoice::Cpu).unwrap());
}
