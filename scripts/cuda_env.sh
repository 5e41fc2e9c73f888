# Sourced: sets what a build with the cargo feature `cuda` needs. With the CUDA of the nvcc that is on the PATH; where there is none, compiler
# and libraries of CUDA 13.0 come out of Python packages (1.2 GB), and a library of empty functions stands for the driver's: so it builds
# where no GPU is, and runs where driver and libraries are. CUDA_COMPUTE_CAP: the GPU's (90: H100, H200).
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
if ! command -v nvcc >/dev/null; then
  home=$PWD/.cache/cuda-13.0
  if [ ! -f "$home/complete" ]; then
    rm -rf "$home"
    mkdir -p "$home/lib64"
    # Compiler and headers must be of one minor version, and no newer than the driver's.
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$home/packages" \
      nvidia-cuda-{nvcc,crt,runtime,cccl,nvrtc}==13.0.* nvidia-nvvm==13.0.* nvidia-cublas==13.0.* nvidia-curand==10.4.0.*
    kit=packages/nvidia/cu13
    ln -s "$kit/bin" "$kit/include" "$kit/nvvm" "$home"
    for library in cublas cublasLt curand cudart nvrtc; do
      ln -s "$(ls -d "$home/$kit/lib/lib$library".so.[0-9]* | head -1)" "$home/lib64/lib$library.so"
    done
    ln -s "$home/$kit/lib/"*.a "$home/lib64"
    grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$home/include/cuda.h" | sort -u | sed 's/.*/int &(void) { return 100; }/' |
      cc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$home/lib64/libcuda.so" -xc -
    touch "$home/complete"
  fi
  export CUDA_HOME=$home CUDA_PATH=$home CUDA_ROOT=$home CUDA_TOOLKIT_ROOT_DIR=$home CUDARC_CUDA_VERSION=13000
  export PATH=$home/bin:$PATH LIBRARY_PATH=$home/lib64${LIBRARY_PATH:+:$LIBRARY_PATH}
fi
