//! Writes ResNet-50 and MobileNetV2 with random weights from a seed, each into a folder of its own:
//!
//! `cargo run -p roost-native --example networks -- FOLDER`, then `roost-node run FOLDER/resnet50_seeded
//! --repeat 20`.

#[path = "../benches/speed/networks.rs"]
mod networks;

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("give the folder to write to")?);
    for (name, model) in networks::all() {
        std::fs::create_dir_all(folder.join(name))?;
        std::fs::write(folder.join(name).join("model.onnx"), &model)?;
        println!("{}: {} bytes", folder.join(name).display(), model.len());
    }
    Ok(())
}
