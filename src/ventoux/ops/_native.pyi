"""csrc/module.cpp. Integers named like tensors are addresses."""

# (data, count, columns, is bf16) of rows of activations
Rows = tuple[int, int, int, bool]
# (data, group scales, row scales, rows, columns, format) of a weight; with experts, rows are those of one
Weight = tuple[int, int, int, int, int, int]

def instruction_sets(emulated: bool = False) -> list[str]: ...
def to_nvfp4(values: Rows, global_scale: float, codes: int, group_scales: int) -> None: ...
def use_huge_pages(address: int, num_bytes: int) -> None: ...

class Stack: ...

def make_stack(
    sizes: tuple[int, int, int, int, int, int, int],
    eps: float,
    softmax_scale: float,
    route_scale: float,
    norm: Rows,
    layers: list[tuple[list[Rows], list[Weight]]],
) -> Stack: ...

class Runtime:
    def __init__(self, num_threads: int, instruction_set: str) -> None: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    def rms_norm(self, x: Rows, weight: Rows, eps: float, out: Rows) -> None: ...
    def linear(self, x: Rows, weight: Weight, out: Rows) -> None: ...
    def route(self, x: Rows, gate: Weight, top_k: int, scale: float, weights: int, expert_ids: int) -> None: ...
    def moe(
        self,
        x: Rows,
        weights: int,
        expert_ids: int,
        top_k: int,
        num_experts: int,
        gate_up: Weight,
        down: Weight,
        shared_gate: Weight,
        shared_up: Weight,
        shared_down: Weight,
        out: Rows,
    ) -> None: ...
    def write_latent(
        self, latents: Rows, norm: Rows, eps: float, cos: int, sin: int, rope_width: int, cache: Rows, slots: int
    ) -> None: ...
    def attention(
        self,
        q: Rows,
        kv_b: Weight,
        cache: Rows,
        lengths: tuple[int, ...],
        context_lengths: tuple[int, ...],
        pages: int,
        max_pages: int,
        page_size: int,
        sizes: tuple[int, int, int, int],
        scale: float,
        cos: int,
        sin: int,
        rope_width: int,
        query_scales: int,
        out: Rows,
    ) -> None: ...
    def run_stack(
        self,
        stack: Stack,
        x: Rows,
        cos: int,
        sin: int,
        query_scales: int,
        lengths: tuple[int, ...],
        context_lengths: tuple[int, ...],
        pages: int,
        max_pages: int,
        page_size: int,
        slots: int,
        caches: list[Rows],
        out: Rows,
    ) -> None: ...
    def place(
        self,
        positions: int,
        count: int,
        inv_freq: int,
        lanes: int,
        original: int,
        beta: float,
        cos: int,
        sin: int,
        query_scales: int,
    ) -> None: ...
    def scan(self, x: Rows) -> tuple[list[bool], list[int]]: ...
