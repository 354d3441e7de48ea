//! The two ways of a pair: straight to the endpoint, and through the proxy.

use std::time::Duration;

use bytes::Bytes;
use half::f16;
use tokio::time::sleep;

use crate::{
    Ends, Form, Model,
    client::{Grpc, Http, Took},
    origin::{self, Answers},
    report::Pairs,
};

/// Latents of a 512x512 picture.
const SMALL: [usize; 4] = [1, 4, 64, 64];

/// Latents of 2048x2136 pixels, of which the decoder's numbers are 25 MiB.
pub(crate) const LARGE: [usize; 4] = [1, 4, 256, 267];

/// Before each call: the proxy proves a picture after its reader has it, and that is not to be in the next call.
const SETTLE: Duration = Duration::from_millis(4);

/// One decode.
pub(crate) struct Input {
    pub(crate) shape: [usize; 4],
    pub(crate) data: Bytes,
}

/// The connections of one table.
pub(crate) struct Ways {
    form: Form,
    direct: Http,
    through: Through,
}

enum Through {
    Http(Http),
    Grpc(Grpc),
}

impl Form {
    const fn latents(self) -> [usize; 4] {
        match self {
            Self::Png | Self::PngOverGrpc => SMALL,
            Self::Tensor => LARGE,
        }
    }
}

impl Ways {
    pub(crate) async fn connect(ends: &Ends, form: Form, model: Model) -> anyhow::Result<Self> {
        let direct = Http::connect(ends.origin, origin::path(model.pace)).await?;
        let through = match form {
            Form::PngOverGrpc => Through::Grpc(Grpc::connect(ends.proxy, model.name).await?),
            Form::Png | Form::Tensor => {
                Through::Http(Http::connect(ends.proxy, format!("/decode/{}", model.name)).await?)
            }
        };
        Ok(Self { form, direct, through })
    }

    /// So many pairs, each of a latent of its own.
    pub(crate) async fn pairs(&mut self, answers: &Answers, count: usize) -> anyhow::Result<Pairs> {
        let mut pairs = Pairs::default();
        for _ in 0..count {
            let input = Input::new(self.form.latents());
            let (direct, through);
            if fastrand::bool() {
                direct = self.direct(&input, answers).await?;
                through = self.through(&input, answers).await?;
            } else {
                through = self.through(&input, answers).await?;
                direct = self.direct(&input, answers).await?;
            }
            pairs.add(direct, through);
        }
        Ok(pairs)
    }

    async fn direct(&mut self, input: &Input, answers: &Answers) -> anyhow::Result<Took> {
        sleep(SETTLE).await;
        self.direct.decode(self.form, input, answers.expected(self.form)).await
    }

    async fn through(&mut self, input: &Input, answers: &Answers) -> anyhow::Result<Took> {
        sleep(SETTLE).await;
        self.through.decode(self.form, input, answers.expected(self.form)).await
    }
}

impl Through {
    async fn decode(&mut self, form: Form, input: &Input, expected: &Bytes) -> anyhow::Result<Took> {
        match self {
            Self::Http(http) => http.decode(form, input, expected).await,
            Self::Grpc(grpc) => grpc.decode(input, expected).await,
        }
    }
}

impl Input {
    /// Latents that nobody has sent before: f16, about as large as a denoiser's.
    pub(crate) fn new(shape: [usize; 4]) -> Self {
        let value = |_| f16::from_f32(fastrand::f32() * 8.0 - 4.0).to_le_bytes();
        let data = (0..shape.iter().product::<usize>()).flat_map(value).collect::<Vec<u8>>().into();
        Self { shape, data }
    }
}
