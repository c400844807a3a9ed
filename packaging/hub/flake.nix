{
  description = "RoAd (2D Rotary Adaptation): Triton kernels, and the same in PyTorch";

  inputs.builder.url = "github:huggingface/kernels";

  outputs =
    { self, builder }:
    builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
