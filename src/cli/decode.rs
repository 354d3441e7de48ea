//! `decode`: latents in a file to a picture or pixels in a file.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use super::{
    client::{Answer, BlockBar, Client},
    files::{self, Format, Input},
    request::{Common, Connection, DtypeFlag, tensor_spec},
    say, serve,
};
use crate::{proto, tensor::Tensor};

/// Flags of `decode`.
#[derive(Debug, Args)]
pub(super) struct Decode {
    /// Latents: .safetensors or .npy, [n,c,h,w], or packed [n,l,4c] with --height and --width.
    #[arg(value_name = "INPUT")]
    input: PathBuf,
    /// Where to: .png, .jpg, .webp, or .safetensors, .npy for a tensor.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    common: Common,
    /// Height of the picture in pixels, for packed latents.
    #[arg(long, value_name = "PIXELS", requires = "width")]
    height: Option<u32>,
    /// Width of the picture in pixels, for packed latents.
    #[arg(long, value_name = "PIXELS", requires = "height")]
    width: Option<u32>,
    /// Quality of a .jpg. Default: 75.
    #[arg(long, value_name = "1..100", value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: Option<u8>,
    /// Element type of a tensor; u8 is finished pixels [n,h,w,3], the others decoder output [n,3,h,w]. Default: f16.
    #[arg(long, value_enum, value_name = "DTYPE")]
    dtype: Option<DtypeFlag>,
    /// Also write a tiny picture made from the latents alone.
    #[arg(long, value_name = "FILE.jpg")]
    preview: Option<PathBuf>,
    #[command(flatten)]
    connection: Connection,
}

impl Decode {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let format = Format::of(&self.output)?;
        let output = output(format, self.dtype, self.quality)?;
        files::check_place(&self.output)?;
        if let Some(preview) = &self.preview {
            ensure!(Format::of(preview)? == Format::Jpeg, "--preview {}: previews are .jpg", preview.display());
            files::check_place(preview)?;
        }
        let latents = self.latents()?;
        let spec = self.spec(&latents, output);
        let answer = serve::runtime()?.block_on(async {
            let client = Client::connect(&self.connection, BlockBar::on_terminal()).await?;
            client.decode(spec, latents.into_data(), self.common.order()).await
        })?;
        if let Some(path) = &self.preview {
            match &answer.preview {
                Some(preview) => files::write(path, preview)?,
                None => say(format_args!(
                    "no preview came: answers from memory have none, nor have some models; --cache bypass computes anew"
                )),
            }
        }
        save(&answer, format, "pixels", &self.output)
    }

    fn latents(&self) -> anyhow::Result<Tensor> {
        match files::read(&self.input, self.common.tensor.as_deref())? {
            Input::Tensor(latents) => Ok(latents),
            Input::Picture(_) => bail!(
                "{} is a picture; decode takes latents (.safetensors or .npy), which `latentgate encode` makes of one",
                self.input.display()
            ),
        }
    }

    fn spec(&self, latents: &Tensor, output: proto::Output) -> proto::DecodeSpec {
        proto::DecodeSpec {
            model: self.common.model.clone(),
            latents: Some(tensor_spec(latents)),
            scaling: self.common.scaling(),
            height: self.height.unwrap_or(0),
            width: self.width.unwrap_or(0),
            output: Some(output),
            cache: self.common.cache(),
            wants: Some(proto::Wants { progress: false, preview: self.preview.is_some() }),
            ..proto::DecodeSpec::default()
        }
    }
}

/// Writes an answer in the form of the file's extension, and says what it was.
pub(super) fn save(answer: &Answer, format: Format, name: &str, path: &Path) -> anyhow::Result<()> {
    let (want, got) = (format.content_type(), &answer.header.content_type);
    ensure!(want == got, "wanted {want}, the server answered {got}; is it of another version?");
    if format.is_picture() {
        files::write(path, &answer.data)?;
    } else {
        let file = format.file_of(name, &answer.tensor()?).with_context(|| path.display().to_string())?;
        files::write(path, &file)?;
    }
    say(format_args!("{}: {}", path.display(), answer.summary()));
    Ok(())
}

/// The wire's word for what a file of `format` is made of.
pub(super) fn output(format: Format, dtype: Option<DtypeFlag>, quality: Option<u8>) -> anyhow::Result<proto::Output> {
    use proto::output::{Jpeg, Kind, Png, Tensor, Uint8, Webp};
    if let (Some(_), true) = (dtype, format.is_picture()) {
        bail!("--dtype is for tensors, and {format} is a picture; name an --output .safetensors or .npy");
    }
    if quality.is_some() && format != Format::Jpeg {
        bail!("--quality is for .jpg, and the output is {format}; leave it out");
    }
    if (format, dtype) == (Format::Npy, Some(DtypeFlag::Bf16)) {
        bail!("NumPy has no bf16; wanted --dtype f32 or f16, or a .safetensors file");
    }
    let kind = match format {
        Format::Png => Kind::Png(Png {}),
        Format::Jpeg => Kind::Jpeg(Jpeg { quality: quality.map_or(0, u32::from) }),
        Format::Webp => Kind::Webp(Webp {}),
        Format::Safetensors | Format::Npy => match dtype.unwrap_or(DtypeFlag::F16) {
            DtypeFlag::U8 => Kind::Uint8(Uint8 {}),
            float => Kind::Tensor(Tensor { dtype: float.float("pixels")? as i32 }),
        },
    };
    Ok(proto::Output { kind: Some(kind) })
}
