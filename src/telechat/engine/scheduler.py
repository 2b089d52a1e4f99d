"""What the next step computes. Decides with integers; knows no tensors and no text.

Running requests get their next token first; what is left of the step's token budget goes to prompts, in
pieces where they are long. A prompt is admitted when the cache has blocks for all of it. When the blocks run
out, a running request loses its own and waits again, keeping the tokens it has: what it had computed is
computed again, or found in the cache where its blocks were published.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence

from telechat.engine.blocks import BlockAllocator, BlockName, block_name, root_name
from telechat.engine.request import Request, State
from telechat.engine.rope import RopeRule
from telechat.engine.waiting import WaitingQueue
from telechat.engine.work import Counters, Step, Work

# Rows of logits over the vocabulary for one piece of a prompt whose every token is wanted.
MOST_PROMPT_ROWS = 64


class Scheduler:
    """Admission, chunked prefill and preemption over a fixed number of blocks.

    Args:
        blocks: must hold any single request to its end.
        rope: which rotary table a token has.
        max_batch_size: requests that run at once; no more than max_batch_tokens count.
        max_batch_tokens: tokens computed in one step.
    """

    def __init__(
        self,
        blocks: BlockAllocator,
        rope: RopeRule,
        *,
        max_batch_size: int,
        max_batch_tokens: int,
    ) -> None:
        self.blocks = blocks
        self.rope = rope
        self._only_table = rope.static_length if rope.mode == "static" else None
        # Every running request gets at least one token a step.
        self.max_running = min(max_batch_size, max_batch_tokens)
        self.max_batch_tokens = max_batch_tokens
        self.waiting = WaitingQueue(welcome_tokens=max_batch_tokens)
        self.running: list[Request] = []  # by priority, then number
        self.counters = Counters()
        self._budget = 0
        self._work: list[Work] = []

    @property
    def has_work(self) -> bool:
        """Some request is not finished."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        assert request.state is State.WAITING and not request.block_table
        self.waiting.enter(request)

    def schedule(self) -> Step:
        """Say what to compute next; `commit` must follow once it has been computed."""
        self._budget, self._work = self.max_batch_tokens, []
        self._make_way()
        order = self._by_right_to_stay()
        pending = []
        for num_before, request in enumerate(list(order)):
            num_tokens = len(request.prompt_token_ids) + len(request.token_ids)
            if (
                num_tokens <= request.num_easy_tokens
                and num_tokens - request.num_computed_tokens == 1
                and not request.draft_token_ids
            ):  # nearly every request in nearly every step
                self._budget -= 1
                self._work.append(Work(request, num_tokens - 1, 1, 1, self._only_table or num_tokens))
                continue
            if request.state is not State.RUNNING:
                continue
            if self._has_one_left(request):
                self._decode(request, order, num_spare=self._budget - (len(self.running) - num_before))
            if not self._has_one_left(request):
                pending.append(request)
        self._charge_decoding()
        self._prefill_all([request for request in pending if request.state is State.RUNNING])
        work, self._work = tuple(self._work), []
        self.counters.num_steps += bool(work)
        self.counters.num_computed_tokens += self.max_batch_tokens - self._budget
        return Step(work)

    def commit(self, step: Step) -> None:
        """The step has been computed and the tokens it gave have been handed out."""
        for work in step.work:
            request = work.request
            # Of drafts, those that were refused are no tokens now, and their keys will be overwritten.
            request.num_computed_tokens = min(work.stop, request.num_tokens - (request.pooling is None))
            request.draft_token_ids.clear()
            if request.pooling is not None:
                self._publish(request, request.num_computed_tokens)

    def finish(self, request: Request) -> None:
        """Take a request out for good, wherever it stands; does nothing to a finished one."""
        if request.state is State.FINISHED:
            return
        if request.state is State.WAITING:
            self.waiting.take_out(request)
        else:
            self._stop_running(request)
        self.waiting.leave(request)
        request.state = State.FINISHED

    def abandon_running(self) -> list[Request]:
        """After a step that failed: finish everything that runs, and trust nothing in the cache."""
        failed = list(self.running)
        for request in failed:
            self.finish(request)
        self.blocks.forget_names()
        return failed

    def _stop_running(self, request: Request) -> None:
        self.running.remove(request)
        self.waiting.num_running[request.tenant] -= 1
        self.blocks.release(request.block_table)

    def preempt(self, request: Request) -> None:
        """Take a running request's blocks; it waits again before its tenant's others and keeps its tokens."""
        self._stop_running(request)
        request.lose_computed()
        request.state = State.WAITING
        self.waiting.put_back(request)
        self.counters.num_preemptions += 1

    def _by_right_to_stay(self) -> list[Request]:
        """Running requests; the last one is the first to lose its blocks.

        That is the least urgent; of the tenant with the most running; the latest.
        """
        num_running = self.waiting.num_running
        if self.waiting.num_tenants < 2:
            return list(self.running)
        return sorted(self.running, key=lambda r: (r.priority, num_running[r.tenant], r.number))

    def _make_way(self) -> None:
        """Preempt for the next waiting request where it has the better right, if that is enough to admit it.

        The better right is a lower priority number, or a tenant with at least two fewer running requests.
        """
        candidate = self.waiting.first()
        if candidate is None or not self.running:
            return
        order, victims, num_freed = self._by_right_to_stay(), list[Request](), 0
        num_running = dict(self.waiting.num_running)
        while not self._has_room(candidate, num_freed, num_running=len(order)):
            if not order:
                return
            victim = order.pop()
            surplus = num_running[victim.tenant] - num_running.get(candidate.tenant, 0)
            is_less_urgent = victim.priority > candidate.priority
            if not (is_less_urgent or (victim.priority == candidate.priority and surplus >= 2)):
                return
            victims.append(victim)
            num_running[victim.tenant] -= 1
            num_freed += self.blocks.num_held_alone(victim.block_table)
        for victim in victims:
            self.preempt(victim)

    def _has_room(self, request: Request, num_freed: int = 0, *, num_running: int) -> bool:
        """It could be admitted now, beside `num_running` others, were `num_freed` more blocks free."""
        shared = self._shared_prefix(request)
        num_needed = self.blocks.blocks_for(request.num_tokens) - len(shared) + self.blocks.num_unused(shared)
        # Each of the others will soon need one more block; admitting into those would only mean preempting.
        num_free = self.blocks.num_free + num_freed - num_running
        return num_running < self.max_running and num_needed <= num_free

    def _admit(self, request: Request) -> bool:
        """Give a waiting request its blocks, those found in the cache first; False when there is no room."""
        if not self._has_room(request, num_running=len(self.running)):
            return False
        self.waiting.take_out(request)
        self.blocks.share(request.block_table, self._shared_prefix(request))
        request.num_published_blocks = len(request.block_table)
        request.num_computed_tokens = len(request.block_table) * self.blocks.block_size
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.num_computed_tokens
        self.counters.num_prefix_hit_tokens += request.num_computed_tokens
        self._complete_table(request)
        request.rope_epoch = self.rope.epoch(request.num_tokens)
        request.state = State.RUNNING
        insort(self.running, request, key=lambda r: (r.priority, r.number))
        self.waiting.num_running[request.tenant] += 1
        return True

    def _shared_prefix(self, request: Request) -> list[int]:
        """Published blocks that hold its first tokens; never its last token, whose output is wanted."""
        if not self.blocks.prefix_caching or request.needs_prompt_rows:
            return []
        num_tokens = self.rope.num_shareable(len(request.prompt_token_ids), request.num_tokens)
        count = min(num_tokens, request.num_tokens - 1) // self.blocks.block_size
        return self.blocks.find(self._names(request, count))

    def _names(self, request: Request, count: int) -> Sequence[BlockName]:
        """Names of its first `count` blocks."""
        names, size = request.block_names, self.blocks.block_size
        if not names and count:
            epoch = self.rope.epoch(len(request.prompt_token_ids))
            parent = root_name(f"{epoch} {request.adapter} {request.cache_salt}")
        while len(names) < count:
            parent = names[-1] if names else parent
            names.append(block_name(parent, request.tokens(len(names) * size, (len(names) + 1) * size)))
        return names[:count]

    def _complete_table(self, request: Request) -> None:
        missing = self.blocks.blocks_for(request.num_tokens) - len(request.block_table)
        self.blocks.allocate(request.block_table, missing)

    def decoding(self) -> list[Request]:
        """Running requests that the next step gives a token."""
        return [request for request in self.running if self._has_one_left(request) and not request.pooling]

    @staticmethod
    def _has_one_left(request: Request) -> bool:
        """All its tokens but the last one are computed: the next step gives it a new one."""
        return request.num_tokens - request.num_computed_tokens == 1

    def _charge_decoding(self) -> None:
        """Count the step's tokens so far for their tenants."""
        if self._work and self.waiting.num_tenants < 2:
            self.waiting.charge(self._work[0].request.tenant, self.max_batch_tokens - self._budget)
            return
        for work in self._work:
            self.waiting.charge(work.request.tenant, work.num_new_tokens)

    def _easy_tokens(self, request: Request) -> int:
        """See `Request.num_easy_tokens`."""
        size = self.blocks.block_size
        num_tokens = len(request.block_table) * size - 1
        if self.blocks.prefix_caching:
            num_tokens = min(num_tokens, (request.num_published_blocks + 1) * size - 1)
        return self.rope.same_table(num_tokens)

    def _decode(self, request: Request, order: list[Request], *, num_spare: int) -> None:
        """Compute its last token and as many of its drafts as the budget, less a token each for those behind
        it, can spare.

        Where blocks are missing, requests at the end of `order` lose theirs, if need be this one itself.
        """
        if self.rope.is_stale(request.rope_epoch, request.num_tokens):
            self.blocks.release(request.block_table)
            request.lose_computed()
            request.rope_epoch = self.rope.epoch(request.num_tokens)
        blocks, table, num_tokens = self.blocks, request.block_table, request.num_tokens
        num_missing = blocks.blocks_for(num_tokens) - len(table)
        while blocks.num_free < num_missing:
            victim = order.pop()
            self.preempt(victim)
            if victim is request:
                return
        fills_table = num_tokens == (len(table) + num_missing) * blocks.block_size
        if fills_table and blocks.num_free - num_missing > len(self.running):
            # Before it is needed: for executors that begin steps early, and to come here once for each block.
            num_missing += 1
        blocks.allocate(table, max(num_missing, 0))
        if self._has_one_left(request):
            num_drafts = self._keep_drafts(request, num_spare) if request.draft_token_ids else 0
            self._add(request, num_tokens + num_drafts, num_logits=1 + num_drafts)
            request.num_easy_tokens = self._easy_tokens(request)

    def _keep_drafts(self, request: Request, num_spare: int) -> int:
        """Cut its drafts to what can be checked now and still be used, and give them blocks."""
        drafts, num_tokens = request.draft_token_ids, request.num_tokens
        room = (len(request.block_table) + self.blocks.num_free) * self.blocks.block_size - num_tokens
        most = min(len(drafts), num_spare, room, request.max_new_tokens - len(request.token_ids) - 1)
        if most > 0 and self.rope.is_stale(request.rope_epoch, num_tokens + most):
            most = 0  # each accepted draft would change the table of all tokens before it
        del drafts[max(most, 0) :]
        missing = self.blocks.blocks_for(num_tokens + len(drafts)) - len(request.block_table)
        self.blocks.allocate(request.block_table, max(missing, 0))
        return len(drafts)

    def _prefill_all(self, pending: list[Request]) -> None:
        """Spend the rest of the budget on prompts, begun and waiting ones, in the order of their turns."""
        may_admit, unspent, served = True, self._budget, set[str]()
        while self._budget > 0:
            request = min(pending, key=self.waiting.rank, default=None)
            waiting = self.waiting.first() if may_admit else None
            if waiting and (request is None or self.waiting.rank(waiting) < self.waiting.rank(request)):
                request = waiting
            if request is None or self._is_too_much(request, unspent - self._budget, served):
                return
            if request is waiting:
                # Nobody passes the one whose turn it is, or a long prompt might wait for ever.
                may_admit = self._admit(request)
                if not may_admit:
                    continue
            else:
                pending.remove(request)
            served.add(request.tenant)
            self._prefill(request)

    def _is_too_much(self, request: Request, num_spent: int, served: set[str]) -> bool:
        """This prompt would make the step longer than those who wait for it should bear.

        One prompt may fill a step, several together only if no other is left waiting then: else, once half a
        budget is spent on prompts, no further one is begun, so that a step is short for whoever arrives
        during it. And beside the prompt of a tenant with at least two fewer running requests, the flood of
        another has no place.
        """
        if num_spent and 2 * num_spent >= self.max_batch_tokens and not self._all_fit():
            return True
        num_running = self.waiting.num_running
        return any(num_running[request.tenant] - num_running[other] >= 2 for other in served)

    def _all_fit(self) -> bool:
        """What is left of the budget is enough for every prompt that waits."""
        left = self._budget
        for request in self.waiting:
            left -= request.num_tokens
            if left < 0:
                return False
        return True

    def _prefill(self, request: Request) -> None:
        """Compute as much of its tokens as the budget allows."""
        request.draft_token_ids.clear()
        wants_all = request.needs_prompt_rows
        limit = min(self._budget, MOST_PROMPT_ROWS) if wants_all and not request.pooling else self._budget
        start, num_tokens = request.num_computed_tokens, request.num_tokens
        stop = min(num_tokens, start + limit)
        self.waiting.charge(request.tenant, stop - start)
        self._add(request, stop, num_logits=stop - start if wants_all else int(stop == num_tokens))

    def _add(self, request: Request, stop: int, *, num_logits: int) -> None:
        """Put its tokens up to position `stop` into the step."""
        start = request.num_computed_tokens
        num_prompt = len(request.prompt_token_ids)
        self._budget -= stop - start
        if request.pooling is None:
            self._publish(request, min(stop, request.num_tokens))
        first_logit = stop - num_logits
        for end, rope_length in self.rope.spans(start, stop, num_prompt, request.num_tokens):
            logits = max(end - max(start, first_logit), 0)
            self._work.append(Work(request, start, end - start, logits, rope_length))
            start = end

    def _publish(self, request: Request, stop: int) -> None:
        """Let others use the blocks that this step fills.

        They may do so in this very step, because all work stores its keys before any attends; but prompts to
        be pooled are computed after the others, and publish when that is done.
        """
        size = self.blocks.block_size
        if not self.blocks.prefix_caching or stop // size <= request.num_published_blocks:
            return
        shareable = self.rope.num_shareable(len(request.prompt_token_ids), request.num_tokens)
        stop = min(stop, shareable)
        names = self._names(request, stop // size)
        for index in range(request.num_published_blocks, len(names)):
            self.blocks.publish(request.block_table[index], names[index])
        request.num_published_blocks = max(request.num_published_blocks, len(names))
