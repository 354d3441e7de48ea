//! The upstream backend against endpoints that fail in every way the script knows.

use std::time::Duration;

use latentgate::{
    backend::{
        Backend as _, ModelState, Others,
        upstream::{BreakerConfig, BudgetConfig, Config},
    },
    body::Body,
    error::{Error, ErrorKind},
    job::Output,
    tensor::{DType, Tensor},
};
use tokio::time::Instant;

use crate::support::{
    origin::{Behaviour, Origin, decoded},
    rig::{Rig, Whole, decode_at, floats, quick},
};

const RAW: Output = Output::Tensor(DType::F16);

/// An origin and the backend before it, with a job's input.
struct Setup {
    origin: Origin,
    rig: Rig,
    latents: Tensor,
}

impl Setup {
    async fn new(config: &Config) -> Self {
        let origin = Origin::start().await;
        let rig = Rig::new("sd-v1", decode_at([origin.decode_url()]), config);
        Self { origin, rig, latents: floats(&[1, 4, 8, 8], 1) }
    }

    /// Runs a job against these behaviours.
    async fn run(&self, output: Output, behaviours: impl IntoIterator<Item = Behaviour>) -> Whole {
        self.origin.script(behaviours);
        self.rig.run(self.rig.decode(&self.latents, output)).await
    }

    async fn fails(&self, output: Output, behaviour: Behaviour) -> Error {
        self.run(output, [behaviour]).await.expect_err("no answer")
    }

    fn attempts(&self, code: &str) -> f64 {
        self.rig.metric("latentgate_upstream_attempts_total", &[&format!("code=\"{code}\"")])
    }

    fn retries(&self, reason: &str) -> f64 {
        self.rig.metric("latentgate_upstream_retries_total", &[&format!("reason=\"{reason}\"")])
    }

    /// Fails unless the answer is the right one.
    #[track_caller]
    fn is_right(&self, whole: Whole) {
        assert_eq!(whole.expect("an answer").1, *decoded(&self.latents, "0.18215", "").data());
    }
}

fn status(status: u16) -> Behaviour {
    Behaviour::Status(status, "because", None)
}

fn retry_after(status: u16, value: &str) -> Behaviour {
    Behaviour::Status(status, "because", Some(("retry-after", value.to_owned())))
}

#[tokio::test]
async fn a_reply_that_is_not_what_was_asked_for_is_an_error_that_says_so() {
    use Behaviour::{Coded, Cut, Flip, Header, Html, Long, Nan, Short, Without};
    let breaker = BreakerConfig { failures: 1000, ..BreakerConfig::default() };
    let setup = Setup::new(&Config { breaker, ..quick() }).await;
    let mp4ish = "it does not begin like one";
    for (output, behaviour, said) in [
        (RAW, Html, "no readable `shape` header"),
        (RAW, Without("dtype"), "no readable `dtype` header"),
        (RAW, Header("shape", "[1,3,64,32]"), "float16 [1,3,64,32] instead of floats [1,3,64,64]"),
        (RAW, Header("dtype", "uint8"), "uint8 [1,3,64,64] instead of floats"),
        (RAW, Header("dtype", "float32"), "announces 24576 bytes instead of 49152"),
        (RAW, Header("dtype", "float64"), "no readable"),
        (RAW, Short(2), "announces 24574 bytes instead of 24576"),
        (RAW, Long(2), "announces 24578 bytes instead of 24576"),
        (RAW, Header("content-length", "24570"), "announces 24570 bytes"),
        (RAW, Header("content-encoding", "gzip"), "compressed (gzip)"),
        (RAW, Coded(206), "its status is 206 instead of 200"),
        (Output::Png, Coded(203), "its status is 203 instead of 200"),
        (RAW, Nan(0), "holds NaN or infinity"),
        (RAW, Nan(24_574), "holds NaN or infinity"),
        (Output::Tensor(DType::F32), Nan(24_574), "holds NaN or infinity"),
        (Output::Unit, Nan(1_000), "holds NaN or infinity"),
        (RAW, Cut(1000), "broke the connection"),
        (RAW, Cut(0), "broke the connection"),
        (Output::Png, Html, mp4ish),
        (Output::Png, Header("content-encoding", "br"), "compressed (br)"),
        (Output::Png, Short(4), "it is cut short"),
        (Output::Png, Long(4), "it goes on after its end"),
        (Output::Png, Flip(700), "it is no PNG"),
        (Output::Png, Flip(0), mp4ish),
        (Output::Png, Cut(500), "broke the connection"),
        (Output::Png, Header("content-length", "99999999"), "are the most there can be"),
        (Output::Jpeg(80), Html, mp4ish),
        (Output::Jpeg(80), Flip(700), "a checksum does not fit"),
        (Output::Uint8, Short(100), "it is cut short"),
        (Output::Webp, Cut(10), "broke the connection"),
    ] {
        let error = setup.fails(output, behaviour.clone()).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{output:?} {behaviour:?}: {error}");
        let message = error.message();
        assert!(message.contains(said), "{output:?} {behaviour:?}: {message}");
        assert!(message.starts_with(&format!("upstream {} ", setup.origin.label())), "{message}");
        assert!(!message.contains("scaling_factor") && !message.contains("tenant"), "{message}");
    }
    setup.is_right(setup.run(RAW, []).await);
}

#[tokio::test]
async fn a_video_that_is_cut_or_another_thing_is_never_whole() {
    let origin = Origin::start().await;
    let rig = Rig::new("hunyuan-video", decode_at([origin.decode_url()]), &quick());
    let latents = floats(&[1, 16, 1, 2, 2], 1);
    for (behaviour, said) in [
        (Behaviour::Html, "it does not begin like one"),
        (Behaviour::Short(3), "it is cut short"),
        (Behaviour::Short(40), "it has no index"),
    ] {
        origin.script([behaviour]);
        let error = rig.run(rig.decode(&latents, Output::Mp4(10))).await.unwrap_err();
        assert!(error.message().contains(said), "{error}");
    }
}

#[tokio::test]
async fn what_fails_before_its_first_published_byte_is_tried_again() {
    let retry_budget = BudgetConfig { ratio: 0.0, floor: 100 };
    let setup = Setup::new(&Config { retries: 2, retry_budget, ..quick() }).await;
    let mendable = [
        Behaviour::Close,
        status(500),
        status(502),
        status(504),
        Behaviour::Html,
        Behaviour::Header("dtype", "float32"),
        Behaviour::Cut(0),
        Behaviour::Coded(206),
        Behaviour::Nan(0),
    ];
    for behaviour in mendable {
        setup.is_right(setup.run(RAW, [behaviour.clone(), behaviour]).await);
    }
    let reasons = [("cut", 4.0), ("5xx", 6.0), ("wrong_reply", 6.0), ("non_finite", 2.0)];
    for (reason, count) in reasons {
        assert_eq!((setup.attempts(reason), setup.retries(reason)), (count, count), "{reason}");
    }
    // What is still to be made a JPEG of has not been published, however much of it has come.
    setup.run(Output::Jpeg(80), [Behaviour::Cut(900), Behaviour::Flip(900)]).await.unwrap();
    let error = setup.run(RAW, [status(500), status(502), status(504)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().ends_with("failed (504): because"), "{error}");
    assert_eq!(setup.retries("no_attempts"), 1.0);
}

#[tokio::test]
async fn what_fails_after_its_first_published_byte_fails_the_body_and_is_not_tried_again() {
    let setup = Setup::new(&Config { retries: 3, ..quick() }).await;
    for (output, behaviour) in [(RAW, Behaviour::Cut(2000)), (Output::Png, Behaviour::Flip(9000))] {
        let before = setup.origin.count();
        setup.fails(output, behaviour).await;
        assert_eq!(setup.origin.count(), before + 1);
    }
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_costs_nothing() {
    let budget = BudgetConfig { ratio: 0.0, floor: 0 };
    let setup = Setup::new(&Config { breaker: strict(), retry_budget: budget, ..quick() }).await;
    for _ in 0..3 {
        setup.is_right(setup.run(RAW, []).await);
        // On the connection that was left open.
        setup.is_right(setup.run(RAW, [Behaviour::Close]).await);
    }
    assert_eq!((setup.attempts("closed"), setup.attempts("ok"), setup.attempts("cut")), (3.0, 6.0, 0.0));
    assert_eq!(setup.rig.state(), ModelState::Ready);
    // Once a job; the second one breaks on a connection of its own, and that is the endpoint's.
    let error = setup.run(RAW, [Behaviour::Close, Behaviour::Close]).await.unwrap_err();
    assert!(error.message().ends_with("broke the connection"), "{error}");
    assert_eq!((setup.attempts("closed"), setup.attempts("cut")), (4.0, 1.0));
    assert!(matches!(setup.rig.state(), ModelState::Failed { .. }));
}

#[tokio::test]
async fn nan_fails_a_job_and_never_closes_an_endpoint() {
    let setup = Setup::new(&Config { breaker: strict(), ..quick() }).await;
    setup.fails(RAW, Behaviour::Nan(2)).await;
    assert_eq!((setup.attempts("non_finite"), setup.rig.state()), (1.0, ModelState::Ready));
    setup.is_right(setup.run(RAW, []).await);
}

#[tokio::test]
async fn refusals_of_the_job_are_the_callers_and_say_the_endpoints_words() {
    let setup = Setup::new(&Config { retries: 3, breaker: strict(), ..quick() }).await;
    for (code, kind) in [(400, ErrorKind::BadRequest), (413, ErrorKind::TooLarge), (422, ErrorKind::BadRequest)] {
        let error = setup.fails(RAW, Behaviour::Status(code, "too\nlarge", None)).await;
        assert_eq!(error.kind(), kind);
        assert!(error.message().ends_with(&format!("({code}): too large")), "{error}");
    }
    assert_eq!((setup.origin.count(), setup.rig.state()), (3, ModelState::Ready));
}

#[tokio::test]
async fn what_no_other_attempt_can_mend_is_not_tried_again() {
    let config = Config { retries: 3, ..quick() };
    let setup = Setup::new(&config).await;
    let elsewhere = Origin::start().await;
    for behaviour in [status(403), status(404), status(410), status(501), Behaviour::Redirect(elsewhere.decode_url())] {
        let error = setup.fails(RAW, behaviour).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    assert_eq!((setup.origin.count(), elsewhere.count()), (5, 0));
    assert!(matches!(setup.rig.state(), ModelState::Failed { .. }));
}

/// One failure opens it, for a short time.
fn strict() -> BreakerConfig {
    let open_time = Duration::from_millis(30);
    BreakerConfig { failures: 1, open_time, max_open_time: open_time }
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_left_in_time_and_nothing_stays_behind() {
    let short = Duration::from_secs(20);
    for (config, behaviour, said) in [
        (Config { attempt_time: short, ..quick() }, Behaviour::Hang, "does not answer within 20s"),
        (Config { attempt_time: short, ..quick() }, Behaviour::Pause(3000), "does not end its reply within 20s"),
        (Config { idle_time: short, ..quick() }, Behaviour::Pause(3000), "sends no more of its reply within 20s"),
    ] {
        let setup = Setup::new(&config).await;
        let hangs = matches!(behaviour, Behaviour::Hang);
        setup.origin.script([behaviour]);
        let (mut writer, body) = Body::channel();
        let mut reader = body.reader();
        let hung = async {
            setup.origin.until_requests(1).await;
            if !hangs {
                reader.next().await.unwrap().expect("the first bytes");
            }
            // Nothing more comes: what is left to happen is the limit.
            tokio::time::pause();
        };
        let job = setup.rig.decode(&setup.latents, RAW);
        let (ended, ()) = tokio::join!(setup.rig.fill(job, Others::None, &mut writer), hung);
        tokio::time::resume();
        let error = ended.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().ends_with(said), "{error}");
        setup.origin.until_left(1).await;
        assert_eq!(setup.attempts("timeout"), 1.0);
    }
}

#[tokio::test]
async fn a_run_that_is_dropped_leaves_the_connection_and_the_line() {
    let setup = Setup::new(&Config { concurrency: 1, ..quick() }).await;
    for behaviour in [Behaviour::Hang, Behaviour::Pause(3000)] {
        setup.origin.script([behaviour]);
        let (mut writer, _body) = Body::channel();
        let before = setup.origin.count();
        tokio::select! {
            ended = setup.rig.fill(setup.rig.decode(&setup.latents, RAW), Others::None, &mut writer) => panic!("{ended:?}"),
            () = setup.origin.until_requests(before + 1) => {}
        }
        setup.origin.until_left(before + 1).await;
    }
    assert_eq!(setup.attempts("cancelled"), 2.0);
    setup.is_right(setup.run(RAW, []).await);
}

#[tokio::test]
async fn more_than_the_line_takes_is_refused_at_once() {
    let setup = Setup::new(&Config { concurrency: 1, queue: 1, ..quick() }).await;
    setup.origin.script([Behaviour::Gated, Behaviour::Gated]);
    let run = || setup.rig.run(setup.rig.decode(&setup.latents, RAW));
    let mut first = Box::pin(run());
    tokio::select! {
        ended = &mut first => panic!("{ended:?}"),
        () = setup.origin.until_requests(1) => {}
    }
    let (second, third) = tokio::join!(run(), async {
        let job = setup.rig.decode(&setup.latents, RAW);
        while setup.rig.backend.waiting(&job) == 0 {
            tokio::task::yield_now().await;
        }
        let third = run().await;
        setup.origin.release(2);
        (third, first.await)
    });
    let (third, first) = third;
    assert_eq!(third.unwrap_err().kind(), ErrorKind::Overloaded);
    setup.is_right(first);
    let queued = second.unwrap().0.provenance.queued;
    assert!(!queued.is_zero());
    assert_eq!(setup.rig.metric("latentgate_backend_queue_capacity", &[r#"backend="upstream""#]), 1.0);
}

#[tokio::test]
async fn a_busy_endpoint_is_asked_again_when_it_says() {
    let setup = Setup::new(&Config { retries: 1, breaker: strict(), ..quick() }).await;
    let began = Instant::now();
    setup.is_right(setup.run(RAW, [retry_after(429, "1")]).await);
    assert!(began.elapsed() >= Duration::from_secs(1));
    let error = setup.fails(RAW, retry_after(429, "3600")).await;
    assert_eq!((error.kind(), setup.retries("no_time")), (ErrorKind::Overloaded, 1.0));
    // With another backend to ask, more than a second is too long.
    setup.origin.script([retry_after(429, "2")]);
    let job = setup.rig.decode(&setup.latents, RAW);
    let error = setup.rig.run_with(job, Others::Follow).await.unwrap_err();
    assert_eq!((error.kind(), setup.rig.state()), (ErrorKind::Overloaded, ModelState::Ready));
}

#[tokio::test]
async fn a_cold_start_is_waited_for_outside_the_retries_unless_another_backend_follows() {
    let budget = BudgetConfig { ratio: 0.0, floor: 0 };
    let setup = Setup::new(&Config { breaker: strict(), retry_budget: budget, ..quick() }).await;
    setup.is_right(setup.run(RAW, vec![status(503); 3]).await);
    assert_eq!((setup.attempts("starting"), setup.rig.state()), (3.0, ModelState::Ready));
    setup.origin.script([status(503)]);
    let job = setup.rig.decode(&setup.latents, RAW);
    let error = setup.rig.run_with(job, Others::Follow).await.unwrap_err();
    assert_eq!((error.kind(), setup.origin.count()), (ErrorKind::Unavailable, 5));

    let short = Config { cold_start_time: Duration::from_millis(250), ..quick() };
    let setup = Setup::new(&short).await;
    let error = setup.run(RAW, vec![status(503); 10]).await.unwrap_err();
    assert!(error.message().contains("is not running, or starting (503)"), "{error}");
    assert_eq!(setup.rig.state(), ModelState::Ready);
    // One that never comes up is no start: its circuit opens in the end.
    let setup = Setup::new(&Config { breaker: strict(), ..short }).await;
    setup.fails(RAW, retry_after(503, "1")).await;
    assert!(matches!(setup.rig.state(), ModelState::Failed { .. }));
}

#[tokio::test]
async fn a_circuit_opens_spares_the_endpoint_and_closes_again() {
    let open_time = Duration::from_secs(30);
    let breaker = BreakerConfig { failures: 2, open_time, ..BreakerConfig::default() };
    let setup = Setup::new(&Config { breaker, ..quick() }).await;
    let circuit = || setup.rig.metric("latentgate_upstream_circuit_open", &[&setup.origin.label()]);
    setup.fails(RAW, status(500)).await;
    assert_eq!((setup.rig.state(), circuit()), (ModelState::Ready, 0.0));
    let mut health = setup.rig.backend.health();
    setup.fails(RAW, Behaviour::Html).await;
    assert!(health.has_changed().unwrap());
    let ModelState::Failed { why, again } = setup.rig.state() else { panic!("{:?}", health.borrow_and_update()) };
    assert!(why.contains("sent a wrong reply") && again > Instant::now(), "{why}");
    assert_eq!(circuit(), 1.0);

    let refused = setup.rig.run(setup.rig.decode(&setup.latents, RAW)).await.unwrap_err();
    assert_eq!((refused.kind(), setup.origin.count()), (ErrorKind::Unavailable, 2));
    assert!(refused.message().contains("repeated failures"), "{refused}");

    tokio::time::pause();
    tokio::time::advance(open_time).await;
    tokio::time::resume();
    setup.is_right(setup.run(RAW, []).await);
    assert!(Instant::now() >= again);
    assert_eq!((setup.origin.count(), setup.rig.state(), circuit()), (3, ModelState::Ready, 0.0));
}

#[tokio::test]
async fn another_endpoint_takes_over_at_once() {
    let origin = Origin::start().await;
    let urls = [Origin::closed_url(), origin.decode_url()];
    let slow = Duration::from_hours(1);
    let config = Config {
        retries: 1,
        backoff: latentgate::backend::upstream::BackoffConfig { base: slow, cap: slow },
        ..quick()
    };
    let rig = Rig::new("sd-v1", decode_at(urls), &config);
    let latents = floats(&[1, 4, 2, 2], 3);
    for _ in 0..12 {
        let (_, bytes) = rig.run(rig.decode(&latents, RAW)).await.unwrap();
        assert_eq!(bytes, *decoded(&latents, "0.18215", "").data());
    }
    // The closed one is tried until its circuit opens, and the model stays ready.
    assert_eq!(rig.metric("latentgate_upstream_attempts_total", &[r#"code="connect""#]), 5.0);
    assert_eq!((rig.state(), origin.count()), (ModelState::Ready, 12));

    // One that is starting is not waited for while another runs.
    let [cold, warm] = [Origin::start().await, Origin::start().await];
    cold.script(vec![status(503); 50]);
    let rig = Rig::new("sd-v1", decode_at([cold.decode_url(), warm.decode_url()]), &config);
    for _ in 0..4 {
        rig.run(rig.decode(&latents, RAW)).await.unwrap();
    }
    assert_eq!(warm.count(), 4);
}

#[tokio::test]
async fn what_is_wrong_with_one_endpoint_is_right_at_another() {
    let elsewhere = Origin::start().await;
    let latents = floats(&[1, 4, 2, 2], 3);
    let redirect = Behaviour::Redirect(elsewhere.decode_url());
    for fault in [status(401), status(403), status(404), status(410), status(405), status(501), redirect] {
        let [bad, good] = [Origin::start().await, Origin::start().await];
        bad.script(vec![fault.clone(); 100]);
        let rig =
            Rig::new("sd-v1", decode_at([bad.decode_url(), good.decode_url()]), &Config { retries: 1, ..quick() });
        for _ in 0..10 {
            let (_, bytes) = rig.run(rig.decode(&latents, RAW)).await.unwrap_or_else(|why| panic!("{fault:?}: {why}"));
            assert_eq!(bytes, *decoded(&latents, "0.18215", "").data());
        }
        // They take turns, until its circuit opens.
        assert_eq!((bad.count(), good.count(), rig.state()), (5, 10, ModelState::Ready), "{fault:?}");
        // What is wrong with the job is wrong everywhere.
        good.script([status(400)]);
        assert_eq!(rig.run(rig.decode(&latents, RAW)).await.unwrap_err().kind(), ErrorKind::BadRequest);
    }
    assert_eq!(elsewhere.count(), 0);
}

#[tokio::test]
async fn retries_draw_on_a_budget() {
    let config = Config {
        retries: 1,
        retry_budget: BudgetConfig { ratio: 0.0, floor: 2 },
        breaker: BreakerConfig { failures: 1000, ..BreakerConfig::default() },
        ..quick()
    };
    let setup = Setup::new(&config).await;
    setup.origin.script(vec![status(500); 100]);
    for _ in 0..4 {
        setup.run(RAW, []).await.unwrap_err();
    }
    assert_eq!((setup.origin.count(), setup.retries("5xx"), setup.retries("no_budget")), (6, 2.0, 2.0));
}
