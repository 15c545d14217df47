"""The compiled kernels: packed weights, the encoder, and each kernel alone for its tests.

Shapes: B texts, T positions, H hidden, E width of the embeddings, V vocabulary, P positions of the
table, M tokens, N rows and K columns of a weight, n tiles.

A tile holds 16 tokens, feature by feature: `tiles[t, feature, i]` is token 16 t + i, so tiles of K
features are float32 (n, K, 16), C-contiguous, and their first element lies on a 64-byte boundary
(`aligned`). Arrays are C-contiguous where nothing else is said; another dtype or layout is a
ValueError. Nothing here starts threads but `Encoder.run`, `linear` and the two measurements of the
machine.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, final, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

_Float32 = NDArray[np.float32]
_Int32 = NDArray[np.int32]

FORMS: tuple[str, ...]
"""Forms that a weight can be packed in: `table`, `dense` and `generated` in float32, `bf16_dense`,
`bf16_block` and `bf16_compressed` in bfloat16, `f16_table` and `f16_generated` in half precision,
`s8_table`, `s8_dense`, `s8_block` and `s8_generated` in integers of 8 bits."""

STEPS: tuple[str, ...]
"""What `Encoder.run(profile=True)` times, in running order; `intermediate` with its activation."""

TILE_TOKENS: int
"""Tokens of a tile: 16."""

MAX_K: int
"""Most columns of a block, in the table and the dense form."""

MAX_FEATURES: int
"""Most rows or columns of a weight: bytes of a tile of so many still fit an int."""

READ_BYTES: int
"""`read_bandwidth` reads multiples of so many bytes."""

def available_isas() -> list[str]:
    """Name the instruction sets this CPU runs, best first; the last is always `generic`.

    All functions that take an `isa` take one of these, and raise ValueError for any other.
    """

def precisions_of(isa: str) -> list[str]:
    """Name what an instruction set multiplies in: `fp32`, `bf16` and `fp16` if it has them."""

def refused_features() -> str:
    """Say what the CPU has but the system does not give this process; empty: nothing."""

def model_isas() -> list[str]:
    """Name the instruction sets that plain C stands for: for tests, any function takes them."""

def aligned(count: int, dtype: DTypeLike = ...) -> NDArray[Any]:
    """Return an uninitialised array (count,) on a 64-byte boundary; float32 unless told."""

def expand(bits: NDArray[np.uint8], count: int, values: NDArray[Any]) -> NDArray[Any]:
    """Return an array (count,) of `values` where a bit is set, in order, and of zeros elsewhere.

    Args:
        bits: (ceil(count / 8),), the lowest bit of a byte first; those beyond `count` are 0.
        count: Elements.
        values: As many as bits are set; of 1, 2 or 4 bytes each.

    Raises:
        ValueError: The sizes contradict each other.
    """

class _Norm(Protocol):
    """LayerNorm over H or E features: gamma and beta, float32."""

    @property
    def gamma(self) -> _Float32: ...
    @property
    def beta(self) -> _Float32: ...
    @property
    def epsilon(self) -> float: ...

class _Embeddings(Protocol):
    """`word` (V, E) float32, or int8 with a `word_scale` (V,); `position` (P, E), `token_type`
    (types, E) or None; `norm` over E; `projection` (H, E), or None where E = H."""

    @property
    def word(self) -> _Float32 | NDArray[np.int8]: ...
    @property
    def word_scale(self) -> _Float32 | None: ...
    @property
    def position(self) -> _Float32: ...
    @property
    def token_type(self) -> _Float32 | None: ...
    @property
    def norm(self) -> _Norm: ...
    @property
    def projection(self) -> PackedLinear | None: ...

_Pair = tuple[PackedLinear, PackedLinear]

class _Layer(Protocol):
    """`qkv` (3 H, H), `attention_output` (H, H), `intermediate` (F, H), `output` (H, F); norms over
    H; `activation`: gelu, gelu_tanh or relu.

    A weight is a pair, for small and for large calls (they may be one object). `attention_output`
    and `output` are packed with `is_residual`. `qkv` holds per head its query, key and value rows,
    and whole heads per panel; the query rows carry scale·log2(e), because attention's weights are
    powers of two.
    """

    @property
    def qkv(self) -> _Pair: ...
    @property
    def attention_output(self) -> _Pair: ...
    @property
    def intermediate(self) -> _Pair: ...
    @property
    def output(self) -> _Pair: ...
    @property
    def attention_norm(self) -> _Norm: ...
    @property
    def output_norm(self) -> _Norm: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def activation(self) -> str: ...

class _Quantization(Protocol):
    """As `toolkit.engine.plan.Quantization`."""

    @property
    def scale(self) -> _Float32: ...
    @property
    def x_scale(self) -> float | None: ...
    @property
    def x_zero_point(self) -> int: ...
    @property
    def x_factor(self) -> _Float32 | None: ...

def give_back_memory() -> None:
    """Give the system the pages back that malloc keeps for later (glibc; nothing elsewhere)."""

@final
class CodeMemory:
    """Memory for generated code and its weights: written until `seal`, executable from then on.

    Several weights of one model share an object, since a huge page is larger than most of them. One
    thread at a time.
    """

    def seal(self) -> None:
        """Make what was written executable.

        Raises:
            OSError: The system forbids executable memory.
        """

@final
class PackedLinear:
    """A weight matrix (N, K) packed for one instruction set, with its bias (N,); immutable."""

    @property
    def form(self) -> str:
        """One of FORMS."""
    @property
    def isa(self) -> str:
        """Whose register tile the dense form is packed for, and whose kernels run it."""
    @property
    def rows(self) -> int:
        """N."""
    @property
    def k(self) -> int:
        """K."""
    @property
    def panel_rows(self) -> int:
        """Rows of a block; the last panel may have fewer."""
    @property
    def kblock(self) -> int:
        """Columns of a block; the last may have fewer."""
    @property
    def is_residual(self) -> bool:
        """Sums start from `init`, not from the bias; only generated code depends on it."""
    @property
    def density(self) -> float:
        """Fraction of nonzero weights, in [0, 1]."""
    @property
    def values(self) -> _Float32:
        """Weights as kernels read them, each block on cache lines of its own; none where they lie
        in memory of generated code.

        An element of bfloat16 is a pair: columns k and k + 1 in its lower and upper half.
        """
    @property
    def offsets(self) -> NDArray[np.uint16 | np.uint8]:
        """Table form: for each of `values` its column's byte offset in a tile, in 8 bits the number
        of its quad; otherwise none."""
    @property
    def row_numbers(self) -> NDArray[np.uint16]:
        """Table form: rows of a block in the order they run; otherwise none."""
    @property
    def runs(self) -> NDArray[np.uint32]:
        """Table form: pairs (bundles of four rows, entries of each row); otherwise none."""
    @property
    def bias(self) -> _Float32:
        """(N,)."""
    @property
    def layout(self) -> NDArray[np.void]:
        """Per block int64 `first_row`, `rows`, `first_k`, `k`, `num_values`, `num_runs`."""
    @property
    def nbytes(self) -> int:
        """Bytes of everything the kernels read, generated code included."""
    @property
    def own_bytes(self) -> int:
        """Bytes of `nbytes`, but for a table's numbers that lie in generated code's memory."""
    @property
    def table(self) -> PackedLinear | None:
        """Of `s8_generated`, if packed `with_table`: the same weight as `s8_table`.

        Its numbers are those that the code reads, and lie where the code does.
        """

    @staticmethod
    def pack(
        weight: _Float32 | NDArray[np.int8],
        bias: _Float32,
        form: str,
        isa: str,
        panel_rows: int,
        kblock: int,
        is_residual: bool = False,
        allocate: Callable[[int, Any], NDArray[Any]] = ...,
        memory: CodeMemory | None = None,
        quantization: _Quantization | None = None,
        with_table: bool = False,
    ) -> PackedLinear:
        """Pack a weight in blocks of panel_rows × kblock.

        Args:
            weight: (N, K) float32 of any strides, at any address; 1 <= N, K <= MAX_FEATURES. In 8
                bits int8.
            bias: (N,) float32.
            form: One of FORMS.
            isa: One of `available_isas()`.
            panel_rows: In 1…65536.
            kblock: In 1…MAX_K, for generated code in 1…512; of bfloat16 even, or all K. In 8 bits
                up to four times as many, in table form and generated 1024, a multiple of four, or
                all K.
            is_residual: Sums will start from `init`, not from the bias.
            allocate: `allocate(count, dtype)` returns a 16-byte aligned array; NumPy's `empty`
                unless told.
            memory: Where generated code goes; the caller seals it before the first run. None: of
                its own.
            quantization: What the integers stand for; None with any form but those of 8 bits. Where
                `x_scale` is None each token has its own scale in each k-block.
            with_table: Of `s8_generated` keep `table`.

        Raises:
            ValueError: Sizes out of range, or an unknown form or isa, or `generated` where the isa
                has no such form, or a quantization that does not fit.
            OSError: `generated`, where the system forbids executable memory.
            MemoryError: There is no room.
        """

    def unpack(self) -> _Float32:
        """Return the weight (N, K): the exact inverse of `pack`, rounded if in 16 bits.

        Raises:
            ValueError: The form is generated.
        """

def forms_of(isa: str) -> list[str]:
    """Name the forms that an instruction set has; generated code may be forbidden all the same."""

def count_nonzeros(weight: _Float32, kblock: int) -> _Int32:
    """Return (k-blocks, N) int32: nonzeros per k-block of `kblock` columns and row.

    Args:
        weight: (N, K) float32 of any strides, at any address.
        kblock: At least 1.

    Raises:
        ValueError: `kblock` is below 1.
    """

class _Group(Protocol):
    """Texts that go through the encoder together.

    Attributes:
        texts: Rows of the batch, each in one group at most.
        lanes: Per text its token positions, int64, those attended to first; with `first_token_only`
            position 0 is among them.
        keys: Per text how many of its lanes are attended to, at least 1.
    """

    @property
    def texts(self) -> list[int]: ...
    @property
    def lanes(self) -> list[NDArray[np.int64]]: ...
    @property
    def keys(self) -> list[int]: ...

class _Schedule(Protocol):
    """All groups of a call; with `is_team` all threads share each, otherwise each takes its own."""

    @property
    def groups(self) -> Sequence[_Group]: ...
    @property
    def is_team(self) -> bool: ...

@final
class Encoder:
    """Embeddings and encoder layers, packed; `run` takes token ids to hidden states."""

    def __init__(
        self,
        isa: str,
        embeddings: _Embeddings,
        layers: Sequence[_Layer],
        num_threads: int,
        small_tiles: int = 0,
        head: PackedLinear | None = None,
        is_16_bit: bool = False,
    ) -> None:
        """Keep what a model is made of; nothing is copied.

        Args:
            isa: Instruction set of every kernel, and of every weight.
            embeddings: Tables and what follows them.
            layers: A list of at least one.
            num_threads: Threads of a call, at least 1.
            small_tiles: A call of at most so many tiles is small. The size of the whole call
                decides, never how it is split, so that results do not depend on the number of
                threads.
            head: PackedLinear (n, H) with n <= H that is all anybody wants of the hidden states, or
                None.
            is_16_bit: Attention multiplies in bfloat16; weights do what their form says.

        Raises:
            ValueError: No layers, sizes that do not fit each other, or an isa without bfloat16.
        """

    @property
    def isa(self) -> str:
        """Instruction set in use."""
    @property
    def num_threads(self) -> int:
        """Threads of a call."""
    @property
    def small_tiles(self) -> int:
        """Most tiles of a small call."""
    @property
    def is_16_bit(self) -> bool:
        """Whether attention multiplies in bfloat16."""
    @property
    def hidden(self) -> int:
        """H."""

    @overload
    def run(
        self,
        ids: _Int32,
        types: _Int32,
        positions: _Int32,
        schedule: _Schedule,
        first_token_only: bool,
        profile: Literal[False] = False,
    ) -> _Float32: ...
    @overload
    def run(
        self,
        ids: _Int32,
        types: _Int32,
        positions: _Int32,
        schedule: _Schedule,
        first_token_only: bool,
        profile: Literal[True],
    ) -> tuple[_Float32, NDArray[np.float64], int, bool]:
        """Run one batch. Not reentrant: one call at a time per object.

        Args:
            ids: (B, T) int32 in 0…V - 1.
            types: (B, T) int32, rows of `token_type`; ignored where there is none.
            positions: (B, T) int32 in 0…P - 1.
            schedule: Which texts go together, and who takes them.
            first_token_only: Only position 0 of every text is wanted.
            profile: Time every step.

        Returns:
            Hidden states float32 (B, T, H), or (B, 1, H) with `first_token_only`; with a head its n
            features instead of H. Tokens that are in no group are zero. With `profile` also seconds
            float64 (1 + layers, steps), summed over threads (row 0: embeddings and scatter), the
            number of threads, and whether the call was large.

        Raises:
            ValueError: Shapes that differ, an id, type or position outside its table, or a group
                outside the batch.
            MemoryError: There is no room for the activations.
        """

def linear(weight: PackedLinear, x: _Float32, num_threads: int = 1) -> _Float32:
    """Return x Wᵀ + bias (M, N) for token rows x (M, K), float32.

    Raises:
        ValueError: x has not K columns, or the weight was generated to start from `init`.
    """

def time_gemm(
    weights: list[PackedLinear], x: _Float32, y: _Float32, init: _Float32 | None, repeats: int
) -> list[float]:
    """Return the least seconds that each weight takes for what `gemm` computes, on one thread.

    Every weight comes from memory, as the layers of a model do, which follow one another and are
    too many to stay in cache; x, y and init are in cache as far as they fit. The weights take
    turns, so that whatever else the machine does meets them all.

    Args:
        weights: At least one; all of one shape.
        x, y, init: As `gemm` takes them, n >= 1.
        repeats: Runs of each weight, at least 1.

    Raises:
        ValueError: Tiles that do not fit the weights.
    """

def fma_peak(isa: str, num_threads: int, seconds: float, precision: str = "fp32") -> float:
    """Measure multiply-adds on registers: GFLOP/s (GOP/s) of all threads, two operations each.

    Args:
        isa: One of `available_isas()`.
        num_threads: Threads at work together, at least 1.
        seconds: Repeat for about so long, > 0, at least once; the best repetition counts.
        precision: `fp32`; `fp16`; `bf16`, with sums in float32; `int8`, with sums in 32 bits.

    Raises:
        ValueError: An argument out of range, or the isa multiplies none of that precision.
    """

def read_bandwidth(isa: str, num_threads: int, size: int, seconds: float) -> float:
    """Measure reading: GB/s of all threads, each reading its own `size` bytes again and again.

    Args:
        isa: One of `available_isas()`.
        num_threads: Threads at work together, at least 1.
        size: Bytes per thread, a multiple of READ_BYTES: what fits a cache is read from there.
        seconds: Repeat for about so long, > 0, at least once; the best repetition counts.

    Raises:
        ValueError: An argument out of range.
        MemoryError: There is no room for the buffers.
    """

# Each kernel alone, for its tests.

def to_tiles(rows: _Float32, isa: str) -> _Float32:
    """Return token rows (M, features) as tiles (⌈M / 16⌉, features, 16); lanes beyond M are 0."""

def from_tiles(tiles: _Float32, count: int, isa: str) -> _Float32:
    """Return the first token rows (count, features) of tiles (n, features, 16); count <= 16 n."""

def gemm(
    weight: PackedLinear,
    x: _Float32,
    y: _Float32,
    init: _Float32 | None = None,
    after: str | None = None,
) -> None:
    """Set y = after(W x + (init, or the bias)) on tiles x (n, K, 16), y and init (n, N, 16).

    init may be y itself; after is what `activation` calls its function, or None.

    Raises:
        ValueError: Shapes that do not fit, or generated code with another start than it was packed
            for.
    """

def activation(name: str, x: _Float32, isa: str) -> None:
    """Set x (count,) = gelu | gelu_tanh | relu | bf16_gelu (x) in place.

    Raises:
        ValueError: The count is no multiple of 16, or the isa has no such function.
        KeyError: Another name.
    """

def layer_norm(
    x: _Float32,
    bias: _Float32 | None,
    gamma: _Float32,
    beta: _Float32,
    epsilon: float,
    y: _Float32,
    isa: str,
) -> None:
    """Set y = LayerNorm(x + bias) over the features of one tile (features, 16).

    Args:
        x: The tile; scratch afterwards.
        bias, gamma, beta: (features,); bias may be None.
        epsilon: Added to the variance, > 0.
        y: (features, 16); may be x.
    """

def attention(
    q: _Float32,
    k: _Float32,
    v: _Float32,
    num_keys: int,
    out: _Float32,
    isa: str,
    is_16_bit: bool = False,
) -> None:
    """Set out = attention of one head of size d, whose weights are the softmax of 2^(q·k).

    Args:
        q, out: (query tiles, d, 16).
        k, v: (key tiles, d, 16).
        num_keys: Tokens of k and v that count, in 1…16 · key tiles.
        is_16_bit: Multiply in bfloat16.

    Raises:
        ValueError: `num_keys` is out of range, or the isa multiplies no bfloat16.
    """

def interpret_code(weight: PackedLinear, function_of: Callable[[bytes, np.void], int]) -> None:
    """Let other functions run a weight whose code this CPU lacks instructions for.

    Such a weight is packed for the isa `f16_code`, of which no function lists the name: where
    AVX-512 can write code, it packs `f16_generated` like AVX512-FP16, and must not run before.

    Args:
        weight: In a generated form.
        function_of: Takes a block's code and its record of `layout`; returns the address of a C
            function like the code's, `generated_fn` of isa/generate_avx512.h, which the caller
            keeps alive.

    Raises:
        ValueError: The form is not generated.
    """
