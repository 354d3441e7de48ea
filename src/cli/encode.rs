//! `encode`: a picture, or pixels in a file, to latents in a file.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};

use super::{
    client::{BlockBar, Client},
    decode::save,
    files::{self, Format, Input},
    request::{Common, Connection, DtypeFlag, tensor_spec},
    serve,
};
use crate::proto::{self, encode_spec};

/// Flags of `encode`.
#[derive(Debug, Args)]
pub(super) struct Encode {
    /// A .png, .jpg or .webp, or pixels [n,3,h,w] in a .safetensors or .npy.
    #[arg(value_name = "PICTURE")]
    input: PathBuf,
    /// Where to: .safetensors or .npy.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Draw from the posterior with this seed, in place of its mean.
    #[arg(long, value_name = "SEED")]
    sample: Option<u64>,
    /// Element type of the latents: f32, f16 or bf16.
    #[arg(long, value_enum, value_name = "DTYPE", default_value = "f16")]
    dtype: DtypeFlag,
    /// What the values of a pixel tensor mean.
    #[arg(long, value_enum, value_name = "RANGE", default_value_t)]
    range: RangeFlag,
    #[command(flatten)]
    connection: Connection,
}

/// `--range`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum RangeFlag {
    /// -1..1 if any value is negative, 0..1 otherwise.
    #[default]
    Auto,
    /// 0..1.
    Unit,
    /// -1..1.
    Signed,
}

impl Encode {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let format = Format::of(&self.output)?;
        if format.is_picture() {
            bail!("{}: latents are a tensor; name an --output .safetensors or .npy", self.output.display());
        }
        if (format, self.dtype) == (Format::Npy, DtypeFlag::Bf16) {
            bail!("NumPy has no bf16; wanted --dtype f32 or f16, or a .safetensors file");
        }
        files::check_place(&self.output)?;
        let dtype = self.dtype.float("latents")?;
        let (input, data) = match files::read(&self.input, self.common.tensor.as_deref())? {
            Input::Picture(file) => (encode_spec::Input::Image(image(&file)), file),
            Input::Tensor(tensor) => {
                let pixels =
                    encode_spec::Pixels { tensor: Some(tensor_spec(&tensor)), range: self.range.word() as i32 };
                (encode_spec::Input::Pixels(pixels), tensor.into_data())
            }
        };
        let mode = self.sample.map(|seed| encode_spec::Mode::Sample(encode_spec::Sample { seed }));
        let spec = proto::EncodeSpec {
            model: self.common.model.clone(),
            input: Some(input),
            mode,
            scaling: self.common.scaling(),
            output_dtype: dtype as i32,
            cache: self.common.cache(),
            ..proto::EncodeSpec::default()
        };
        let answer = serve::runtime()?.block_on(async {
            let client = Client::connect(&self.connection, BlockBar::on_terminal()).await?;
            client.encode(spec, data, self.common.order()).await
        })?;
        save(&answer, format, "latents", &self.output)
    }
}

/// The wire's words for a picture file.
pub(super) fn image(file: &[u8]) -> encode_spec::Image {
    encode_spec::Image { length: file.len() as u64 }
}

impl RangeFlag {
    const fn word(self) -> encode_spec::Range {
        match self {
            Self::Auto => encode_spec::Range::Unspecified,
            Self::Unit => encode_spec::Range::Unit,
            Self::Signed => encode_spec::Range::Signed,
        }
    }
}
