"""Frame and token arithmetic, as plain integers (A.3, A.4; docs/method.md, "The grids").

    pixels [F, H, W] -> latents [Fl, Hl, Wl] -> tokens [Ft, Ht, Wt] -> motion tokens [Fm, Hm, Wm]

Frame 0 has a latent of its own in a causal VAE, so it is dropped on both sides: the student keeps latents 1.., the
teacher sees frames 1... What is left pairs exactly: latent j covers frames 4j-3..4j, teacher tokens 2j-2 and 2j-1.
"""

from dataclasses import dataclass

from moalign.errors import Problem

FRAMES_STEP = {"cogvideox": 8, "wan": 4}  # F = step * n + 1


@dataclass(frozen=True)
class Grid:
    """One backbone's clip beside the teacher's, in pixels, latents and tokens."""

    frames: int  # F
    height: int  # H, pixels
    width: int  # W, pixels
    stride: tuple[int, int]  # of the VAE: time, space
    patch: int  # of the transformer, in latents, both ways
    teacher_height: int  # of the frames that the teacher sees when it learns, pixels
    teacher_patch: int
    teacher_tubelet: int

    @property
    def latents(self) -> tuple[int, int, int]:
        """(Fl, Hl, Wl) of z0, frame 0's latent included."""
        time, space = self.stride
        return (self.frames - 1) // time + 1, self.height // space, self.width // space

    @property
    def tokens(self) -> tuple[int, int, int]:
        """(Ft, Ht, Wt) of the block output Y, frame 0's latent included."""
        Fl, Hl, Wl = self.latents
        return Fl, Hl // self.patch, Wl // self.patch

    @property
    def token_pixels(self) -> int:
        """Side of the pixel square that one student token stands for."""
        return self.stride[1] * self.patch

    @property
    def shrink(self) -> int:
        """Student tokens per motion token along one side: the projector's spatial stride, 3 (paper) or 1."""
        return max(1, round(self.tokens[1] / (self.teacher_height / self.teacher_patch)))

    @property
    def motion(self) -> tuple[int, int, int]:
        """(Fm, Hm, Wm) of M and of Z."""
        _, Ht, Wt = self.tokens
        return (self.frames - 1) // self.teacher_tubelet, Ht // self.shrink, Wt // self.shrink

    @property
    def upsample(self) -> int:
        """Motion tokens per student token in time: 2 in A.4."""
        return self.motion[0] // (self.tokens[0] - 1)

    @property
    def crop(self) -> tuple[int, int]:
        """(height, width) in pixels, from the top left, that the motion tokens cover: 480 x 816 of Wan's 480 x 832."""
        _, Hm, Wm = self.motion
        return Hm * self.shrink * self.token_pixels, Wm * self.shrink * self.token_pixels

    @property
    def view(self) -> tuple[int, int]:
        """(height, width) in pixels of the frames that the teacher sees: `crop`, resized."""
        _, Hm, Wm = self.motion
        return Hm * self.teacher_patch, Wm * self.teacher_patch

    @property
    def flows(self) -> int:
        """Transitions between motion token times: 23 in A.3."""
        return self.motion[0] - 1

    def check(self, family: str, key: str) -> None:
        """Raise Problem where the sizes do not fit together; `key` is the parameter's path."""
        step = FRAMES_STEP[family]
        if self.frames < step + 1 or (self.frames - 1) % step:
            near = max(1, (self.frames - 1) // step) * step + 1
            raise Problem(f"{key}.frames: {self.frames} is not {step}n+1, which {family}'s VAE needs; try {near}")
        for name, pixels in (("height", self.height), ("width", self.width)):
            if pixels % self.token_pixels:
                raise Problem(
                    f"{key}.size: {name} {pixels} is not a multiple of {self.token_pixels}"
                    f" (VAE stride {self.stride[1]} x patch {self.patch})"
                )
        if self.teacher_height % self.teacher_patch:
            raise Problem(
                f"encoder.size: height {self.teacher_height} is not a multiple of the patch, {self.teacher_patch}"
            )
        _, Ht, Wt = self.tokens
        rows = self.teacher_height // self.teacher_patch
        if self.shrink not in (1, 3) or Ht // self.shrink != rows:
            raise Problem(
                f"{key}.size: a student grid of {Ht} x {Wt} tokens is neither 1 x nor 3 x the teacher's {rows} rows"
                f" (encoder.size / encoder.patch); allowed student rows: {rows} or {3 * rows}"
            )
        if (self.frames - 1) % self.teacher_tubelet or self.motion[0] % (self.tokens[0] - 1):
            raise Problem(
                f"{key}.frames: {self.motion[0]} motion tokens in time are no whole multiple of the"
                f" {self.tokens[0] - 1} latents after the first"
            )
