//! Query parameters: from Python's spelling to types, and back.

use std::fmt::Write as _;

use form_urlencoded::Serializer;

use crate::{
    error::Error,
    tensor::{DType, Shape},
};

/// The largest request of any client has some twenty.
const MAX_PARAMETERS: usize = 64;

/// What the model side makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputType {
    /// A picture, or finished values in 0..1.
    Pil,
    /// Decoder output.
    Pt,
    /// A video file.
    Mp4,
}

/// The picture format that a client of diffusers has in mind. Informative: `Accept` decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// `jpg`.
    Jpeg,
    /// `png`.
    Png,
}

/// Everything a query can say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    /// Dimensions of the tensor in the body.
    pub shape: Option<Shape>,
    /// Its dtype.
    pub dtype: Option<DType>,
    /// Absent is `pil`.
    pub output_type: Option<OutputType>,
    /// Informative.
    pub image_format: Option<ImageFormat>,
    /// With `pt`: finish to 8 bits on the server.
    pub partial_postprocess: Option<bool>,
    /// Latents are divided by it.
    pub scaling_factor: Option<f64>,
    /// Then it is added.
    pub shift_factor: Option<f64>,
    /// Scale with the server's own numbers.
    pub do_scaling: Option<bool>,
    /// Pixels of the wanted picture: packed latents need it, and it is read for them alone.
    pub height: Option<u32>,
    /// See `height`.
    pub width: Option<u32>,
}

/// The values as they came, before they are types.
#[derive(Default)]
struct Spelled {
    shape: Vec<String>,
    scalars: Vec<(&'static str, String)>,
}

const SCALARS: [&str; 9] = [
    "dtype",
    "output_type",
    "image_format",
    "partial_postprocess",
    "scaling_factor",
    "shift_factor",
    "do_scaling",
    "height",
    "width",
];

// === impl OutputType ===

impl OutputType {
    /// The word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pil => "pil",
            Self::Pt => "pt",
            Self::Mp4 => "mp4",
        }
    }
}

// === impl Parameters ===

impl Parameters {
    /// Reads a query string, percent-encoded as it came. Unknown keys are ignored; `None`, `null` and nothing are absence.
    pub fn parse(query: &str) -> Result<Self, Error> {
        Self::parse_with(query, Vec::new())
    }

    /// The same, with further pairs from a JSON body for the keys that the query leaves out.
    pub fn parse_with(query: &str, more: Vec<(String, String)>) -> Result<Self, Error> {
        let mut spelled = Spelled::default();
        let too_many = || Error::bad_request("query", format!("more than {MAX_PARAMETERS} parameters"));
        for (count, (key, value)) in form_urlencoded::parse(query.as_bytes()).enumerate() {
            if count == MAX_PARAMETERS {
                return Err(too_many());
            }
            spelled.take(&key, value.into_owned())?;
        }
        if more.len() > MAX_PARAMETERS {
            return Err(too_many());
        }
        // What the query says stands: an answer posted back says its shape and dtype in both places.
        let said: Vec<bool> = more.iter().map(|(key, _)| spelled.has(key)).collect();
        for ((key, value), _) in more.into_iter().zip(said).filter(|(_, said)| !said) {
            spelled.take(&key, value)?;
        }
        spelled.typed()
    }

    /// A query string, in the order of diffusers' client. [`Self::parse`] undoes it.
    pub fn to_query(&self) -> String {
        let mut query = Serializer::new(String::new());
        let mut put = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                query.append_pair(key, &value);
            }
        };
        let boolean = |value: bool| if value { "True".to_owned() } else { "False".to_owned() };
        let format = self.image_format.map(|format| if format == ImageFormat::Jpeg { "jpg" } else { "png" });
        put("image_format", format.map(str::to_owned));
        put("output_type", self.output_type.map(|kind| kind.name().to_owned()));
        put("partial_postprocess", self.partial_postprocess.map(boolean));
        for dim in self.shape.iter().flat_map(Shape::dims) {
            put("shape", Some(dim.to_string()));
        }
        put("dtype", self.dtype.map(|dtype| dtype.name().to_owned()));
        put("scaling_factor", self.scaling_factor.map(|factor| factor.to_string()));
        put("shift_factor", self.shift_factor.map(|shift| shift.to_string()));
        put("do_scaling", self.do_scaling.map(boolean));
        put("height", self.height.map(|height| height.to_string()));
        put("width", self.width.map(|width| width.to_string()));
        query.finish()
    }
}

impl Spelled {
    fn take(&mut self, key: &str, value: String) -> Result<(), Error> {
        if ["", "none", "null"].iter().any(|absent| value.eq_ignore_ascii_case(absent)) {
            return Ok(());
        }
        if key == "shape" {
            self.shape.push(value);
            return Ok(());
        }
        let Some(known) = SCALARS.into_iter().find(|known| *known == key) else { return Ok(()) };
        if self.scalar(known).is_some() {
            return Err(Error::bad_request(known, "given twice"));
        }
        self.scalars.push((known, value));
        Ok(())
    }

    fn has(&self, key: &str) -> bool {
        if key == "shape" { !self.shape.is_empty() } else { self.scalar(key).is_some() }
    }

    fn scalar(&self, key: &str) -> Option<&str> {
        self.scalars.iter().find(|(known, _)| *known == key).map(|(_, value)| value.as_str())
    }

    fn typed(&self) -> Result<Parameters, Error> {
        let texts: Vec<&str> = self.shape.iter().map(String::as_str).collect();
        let shape = if texts.is_empty() { None } else { Some(shape(&texts)?) };
        let is_packed = shape.as_ref().is_some_and(|shape| shape.rank() == 3);
        let pixels = |key| if is_packed { self.map(key, pixels) } else { Ok(None) };
        Ok(Parameters {
            dtype: self.map("dtype", |_, text| dtype(text))?,
            output_type: self.map("output_type", output_type)?,
            image_format: self.scalar("image_format").and_then(image_format),
            partial_postprocess: self.map("partial_postprocess", boolean)?,
            scaling_factor: self.map("scaling_factor", factor)?,
            shift_factor: self.map("shift_factor", number)?,
            do_scaling: self.map("do_scaling", boolean)?,
            height: pixels("height")?,
            width: pixels("width")?,
            shape,
        })
    }

    fn map<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&'static str, &str) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.scalar(key).map(|text| parse(key, text)).transpose()
    }
}

/// A dtype by its name.
pub(super) fn dtype(text: &str) -> Result<DType, Error> {
    DType::ALL.into_iter().find(|dtype| dtype.name() == text).ok_or_else(|| {
        let names = DType::ALL.map(DType::name).join(", ");
        Error::bad_request("dtype", format!("supported are {names}; got {}", quoted(text)))
    })
}

/// Dimensions: one a text, or one text with a JSON list or commas.
pub(super) fn shape(texts: &[&str]) -> Result<Shape, Error> {
    let dims = match texts {
        [one] => {
            let list = one.trim().strip_prefix('[').map(|rest| rest.strip_suffix(']'));
            let dims = list.unwrap_or(Some(one)).ok_or_else(|| not_a_shape(one))?;
            dims.split(',').map(dimension).collect()
        }
        many => many.iter().map(|text| dimension(text)).collect::<Result<Vec<_>, _>>(),
    }?;
    Shape::try_from_wire(&dims).map_err(|error| Error::bad_request("shape", error))
}

fn dimension(text: &str) -> Result<i64, Error> {
    let text = text.trim();
    if text.starts_with('+') {
        return Err(not_a_shape(text));
    }
    text.parse().map_err(|_| not_a_shape(text))
}

fn not_a_shape(text: &str) -> Error {
    Error::bad_request("shape", format!("wanted whole numbers, got {}", quoted(text)))
}

fn output_type(key: &'static str, text: &str) -> Result<OutputType, Error> {
    let all = [OutputType::Pil, OutputType::Pt, OutputType::Mp4];
    all.into_iter()
        .find(|kind| kind.name() == text)
        .ok_or_else(|| Error::bad_request(key, format!("wanted pil, pt or mp4, got {}", quoted(text))))
}

fn image_format(text: &str) -> Option<ImageFormat> {
    match text {
        "jpg" | "jpeg" => Some(ImageFormat::Jpeg),
        "png" => Some(ImageFormat::Png),
        _ => None,
    }
}

fn boolean(key: &'static str, text: &str) -> Result<bool, Error> {
    match text {
        "1" => Ok(true),
        "0" => Ok(false),
        _ if text.eq_ignore_ascii_case("true") => Ok(true),
        _ if text.eq_ignore_ascii_case("false") => Ok(false),
        _ => Err(Error::bad_request(key, format!("wanted true or false, got {}", quoted(text)))),
    }
}

fn number(key: &'static str, text: &str) -> Result<f64, Error> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| Error::bad_request(key, format!("wanted a finite number, got {}", quoted(text))))
}

fn factor(key: &'static str, text: &str) -> Result<f64, Error> {
    let factor = number(key, text)?;
    if factor == 0.0 { Err(Error::bad_request(key, "wanted a finite number, not 0")) } else { Ok(factor) }
}

fn pixels(key: &'static str, text: &str) -> Result<u32, Error> {
    text.parse().map_err(|_| Error::bad_request(key, format!("wanted whole pixels, got {}", quoted(text))))
}

/// What came, short enough to be repeated.
fn quoted(text: &str) -> String {
    const MOST: usize = 40;
    let mut quoted: String = text.chars().take(MOST).collect();
    if quoted.len() < text.len() {
        let _ = write!(quoted, "... ({} bytes)", text.len());
    }
    format!("{quoted:?}")
}
