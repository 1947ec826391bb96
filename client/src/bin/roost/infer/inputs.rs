//! Inputs from files: which type of file, which element type, which rows, which pictures.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use image::{DynamicImage, ImageDecoder as _, ImageError, ImageReader};
use roost_client::npy::{self, NpyError};
use roost_protocol::limits::{TENSOR_BYTES_MAX, TENSOR_NAME_BYTES_MAX};
use roost_protocol::{DType, Tensor};

use super::json::{self, JsonError};

/// A file of a tensor. The largest tensor in JSON, at four characters an element, or in `.npy` with its
/// header, fits.
const FILE_BYTES_MAX: u64 = TENSOR_BYTES_MAX + (1 << 20);

/// An input and its file, written `NAME=FILE` or `NAME:TYPE=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// The input's name.
    pub name: String,
    /// The element type that was stated.
    dtype: Option<DType>,
    /// The file.
    path: PathBuf,
}

/// Why a file is no input.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A text that is not `NAME=FILE`.
    #[error(
        "an input is NAME=FILE or NAME:TYPE=FILE, as in image=seven.npy or ids:i64=ids.json; {0:?} is neither"
    )]
    Text(String),
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Larger than any tensor.
    #[error("{} has more than the {FILE_BYTES_MAX} bytes that an input may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Neither `.npy` nor `.json`.
    #[error("{} is neither .npy nor .json; for pictures there is --image", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Not an array of NumPy's that a tensor can hold.
    #[error("{}", path.display())]
    Npy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: NpyError,
    },
    /// Not JSON that a tensor can hold.
    #[error("{}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: JsonError,
    },
    /// A `.npy` file of another type than was stated.
    #[error("{} holds {actual}, not {stated}; convert it in NumPy, as in a.astype(...)", path.display())]
    OtherType {
        /// The file.
        path: PathBuf,
        /// The type in the file.
        actual: DType,
        /// The type that was stated.
        stated: DType,
    },
    /// Not a picture.
    #[error("{} is no picture that can be read (PNG and JPEG can)", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
}

impl FromStr for InputFile {
    type Err = InputError;
    fn from_str(text: &str) -> Result<Self, InputError> {
        let bad = || InputError::Text(text.to_owned());
        let (name, path) = text.split_once('=').ok_or_else(bad)?;
        // Exporters write names such as `input:0`, so what follows a colon is a type only if it is the name
        // of one.
        let typed = name.rsplit_once(':').and_then(|(name, dtype)| Some((name, dtype_of(dtype)?)));
        let (name, dtype) = typed.map_or((name, None), |(name, dtype)| (name, Some(dtype)));
        if name.is_empty() || name.len() > TENSOR_NAME_BYTES_MAX || path.is_empty() {
            return Err(bad());
        }
        Ok(Self { name: name.to_owned(), dtype, path: path.into() })
    }
}

fn dtype_of(name: &str) -> Option<DType> {
    DType::ALL.into_iter().find(|dtype| dtype.name() == name)
}

impl InputFile {
    /// Reads the tensor.
    ///
    /// # Errors
    /// [`InputError`] when the file cannot be read or holds no such tensor.
    pub fn read(&self) -> Result<Tensor, InputError> {
        let path = self.path.clone();
        match self.path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => {
                let tensor = npy::read(&bytes(&path)?)
                    .map_err(|source| InputError::Npy { path: path.clone(), source })?;
                let actual = tensor.dtype();
                match self.dtype {
                    Some(stated) if stated != actual => Err(InputError::OtherType { path, actual, stated }),
                    Some(_) | None => Ok(tensor),
                }
            }
            Some("json") => {
                json::read(&bytes(&path)?, self.dtype).map_err(|source| InputError::Json { path, source })
            }
            Some(_) | None => Err(InputError::Kind { path }),
        }
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, InputError> {
    let failed = |source| InputError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    // By what comes, not by the size that the file system tells: a pipe has none.
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(InputError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Reads a picture, the right way up: cameras store how they were held beside the pixels.
///
/// # Errors
/// [`InputError`] when the file cannot be read or is no picture.
pub fn picture(path: &Path) -> Result<DynamicImage, InputError> {
    let failed = |source| InputError::Read { path: path.to_owned(), source };
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let reader = ImageReader::new(file).with_guessed_format().map_err(failed)?;
    let decode = || {
        let mut decoder = reader.into_decoder()?;
        let orientation = decoder.orientation()?;
        let mut picture = DynamicImage::from_decoder(decoder)?;
        picture.apply_orientation(orientation);
        Ok(picture)
    };
    decode().map_err(|source| InputError::Picture { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use image::GrayImage;

    use super::*;

    fn file(text: &str) -> InputFile {
        text.parse().unwrap()
    }

    #[test]
    fn inputs_read() {
        let check = |text: &str, name: &str, dtype, path: &str| {
            assert_eq!(file(text), InputFile { name: name.to_owned(), dtype, path: path.into() });
        };
        check("image=a.npy", "image", None, "a.npy");
        check("ids:i64=a=b.json", "ids", Some(DType::I64), "a=b.json");
        check("input:0=a.npy", "input:0", None, "a.npy");
        check("input:0:f16=a.npy", "input:0", Some(DType::F16), "a.npy");
        for bad in ["", "image", "=a.npy", "image=", ":f32=a.npy"] {
            bad.parse::<InputFile>().unwrap_err();
        }
    }

    #[test]
    fn files_become_tensors() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.json"), "[[1, 2]]").unwrap();
        let at = |name: &str, path: &Path| file(&format!("{name}={}", path.display())).read();
        assert_eq!(format!("{:?}", at("x", &path("a.json")).unwrap()), "f32[1, 2]");
        assert_eq!(format!("{:?}", at("x:u8", &path("a.json")).unwrap()), "u8[1, 2]");
        assert!(matches!(at("x", &path("b.json")), Err(InputError::Read { .. })));
        assert!(matches!(at("x", &path("a.png")), Err(InputError::Kind { .. })));
        std::fs::write(path("a.npy"), "no array").unwrap();
        assert!(matches!(at("x", &path("a.npy")), Err(InputError::Npy { .. })));
    }

    #[test]
    fn held_out_digits_become_tensors() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/models/digits/heldout_images.npy");
        let tensor = file(&format!("image={}", images.display())).read().unwrap();
        assert_eq!(format!("{tensor:?}"), "f32[450, 1, 8, 8]");
        let error = file(&format!("image:f64={}", images.display())).read().unwrap_err();
        assert!(matches!(error, InputError::OtherType { actual: DType::F32, stated: DType::F64, .. }));
    }

    #[test]
    fn pictures_are_read_by_content_and_others_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("picture.of-no-known-kind");
        let drawn = GrayImage::from_fn(3, 2, |x, y| image::Luma([(x * 10 + y) as u8]));
        drawn.save_with_format(&path, image::ImageFormat::Png).unwrap();
        assert_eq!(picture(&path).unwrap().to_luma8(), drawn);
        std::fs::write(&path, "text").unwrap();
        assert!(matches!(picture(&path), Err(InputError::Picture { .. })));
    }
}
