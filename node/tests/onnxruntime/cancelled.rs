//! Runs that are ended from outside.

use std::sync::mpsc;

use roost_node::engine::{Cancel, EngineError, Sink};
use roost_protocol::Tensor;
use roost_protocol::messages::infer::Named;

use crate::load;
use crate::onnx::{repository, run, test_models};

#[test]
fn a_run_is_cancelled_from_another_thread() {
    let mut session = load(&test_models().join("squeezenet_fp32"));
    let mut other = load(&test_models().join("squeezenet_fp32"));
    let photo = || Tensor::from_elements(&[32, 3, 224, 224], vec![1f32; 32 * 3 * 224 * 224]).unwrap();
    let expected = run(&mut *session, &[photo()]).unwrap();

    /// Tells of each run that came to its end.
    struct Tell(mpsc::Sender<()>);
    impl Sink for Tell {
        fn part(&mut self, _outputs: Vec<Named<Tensor>>) {
            // Nobody listens any more once the flag is raised.
            let _ = self.0.send(());
        }
    }

    let mut ended_midway = 0;
    for _ in 0..5 {
        let cancel = Cancel::new();
        let (tell, told) = mpsc::channel();
        let running = std::thread::spawn({
            let cancel = cancel.clone();
            move || {
                let (photo, mut sink) = (photo(), Tell(tell));
                loop {
                    if let Err(error) = session.run(&[photo.view()], &cancel, &mut sink) {
                        return (session, error);
                    }
                }
            }
        });
        // Into the next run by a thirtieth of it.
        told.recv().unwrap();
        let one = Tensor::from_elements(&[1, 3, 224, 224], vec![1f32; 3 * 224 * 224]).unwrap();
        run(&mut *other, &[one]).unwrap();
        let before = told.try_iter().count();
        cancel.raise();
        let error;
        (session, error) = running.join().unwrap();
        assert_eq!(error, EngineError::Cancelled);
        if before == 0 && told.try_iter().count() == 0 {
            ended_midway += 1;
        }
        assert_eq!(run(&mut *session, &[photo()]).unwrap(), expected);
    }
    // A busy machine may let a run come to its end before the flag is raised, but not every time.
    assert!(ended_midway > 0, "no run was ended midway");
}

#[test]
fn a_run_that_was_cancelled_before_does_not_begin() {
    let mut session = load(&repository().join("deploy/models/digits/v1"));
    let image = Tensor::from_elements(&[1, 1, 8, 8], vec![0f32; 64]).unwrap();
    let cancel = Cancel::new();
    cancel.raise();
    let mut parts = Vec::new();
    assert_eq!(session.run(&[image.view()], &cancel, &mut parts), Err(EngineError::Cancelled));
    assert!(parts.is_empty());
    run(&mut *session, &[image]).unwrap();
}
