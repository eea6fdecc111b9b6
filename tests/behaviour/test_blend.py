def test_x(trained, clips):
    import time
    from kit.infer.predict import predict_clips

    t = time.time()
    p = predict_clips([*trained.mel, trained.stft], clips)
    print(p.probabilities.round(2), p.failures, time.time() - t)
