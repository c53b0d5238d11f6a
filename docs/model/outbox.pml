/* The protocol of the outbox: how one accepted DELETE becomes one teardown.
 *
 * The model has one resource, one job and two workers. Each `atomic` below is one SQL statement of
 * outbox/jobs/, or one transaction on the backend. Between two of them every other process may move. So a
 * zombie needs no code of its own: it is a worker that the scheduler pauses until its lease has passed.
 *
 * docs/model/run compiles this file many times: as it is, and with one guard removed (the mutants, which are
 * the #ifdef's below). UNOBSERVABLE stands for a kind of backend that cannot be inspected: a worker cannot
 * find out whether an earlier teardown took place, and the destructive call knows the object only by its name.
 */

#ifndef MAX_ATTEMPTS
#define MAX_ATTEMPTS 2
#endif
#ifndef CRASHES
#define CRASHES 1 /* of the two workers together, at any step */
#endif
#ifndef FAULTS
#define FAULTS 1 /* of the backend: errors before or after the effect, false reports of success, outages */
#endif
#ifndef REDRIVES
#define REDRIVES 1
#endif

mtype = { ACTIVE, DELETING, DELETED };                     /* resource */
mtype = { NO_JOB, PENDING, RUNNING, STUCK, SUCCEEDED };    /* job; provisions are not modelled */
mtype = { FREE, OURS, NEWCOMER };                          /* which object has the name on the backend */
mtype = { ABSENT, SAME, DIFFERENT, UNAVAILABLE, UNKNOWN }; /* what an inspection finds */
mtype = { DONE, FAILED, REFUSED };                         /* what a teardown answers */

/* -- the control database ------------------------------------------------------------------------------------ */
mtype status = ACTIVE;
mtype job = NO_JOB;
byte fence = 0;
byte attempts = 0;
byte started = 0;   /* started_fence; 0 is NULL */
bool lease = false; /* alive by the database's clock; a heartbeat is not a step: the lease just does not pass */

/* -- the backend --------------------------------------------------------------------------------------------- */
mtype name = OURS;
bool renamed = false; /* our object now has the name zz_del_<generation>; its old name is free again */

/* -- how many crashes, faults and redrives are left ---------------------------------------------------------- */
byte crashes = CRASHES;
byte faults = FAULTS;
byte redrives = REDRIVES;

/* -- ghost variables: no step depends on them, only the properties read them --------------------------------- */
byte wins = 0;               /* DELETEs that were answered "you were the first" */
byte destroyed = 0;          /* how often our object was destroyed */
byte calls = 0;              /* destructive calls that reached an unobservable backend */
bool newcomer_harmed = false;
bool deleted_too_early = false;
bool fence_fell = false;
bool final_moved = false;
byte highest = 0;            /* the highest fence ever given */
byte held[2] = 0;            /* the fence that each worker believes it holds; 0 is none */
bool inside[2] = false;      /* whether each worker is between start and outcome */

#ifdef NO_FENCE
#define MINE(w) (job == RUNNING)
#define HELD 1
#else
#define MINE(w) (job == RUNNING && held[w] == fence)
#define HELD 0
#endif
#ifdef NO_LEASE_CHECK
#define MAY_START (MINE(me) && status == DELETING)
#else
#define MAY_START (MINE(me) && status == DELETING && lease)
#endif

#define settled (job == SUCCEEDED || job == STUCK)
#define accepted (status != ACTIVE)
#define inside_by_valid_claim(w) (inside[w] && held[w] != 0 && MINE(w))

ltl one_winner { [] (wins <= 1) }
ltl destroyed_once { [] (destroyed <= 1) }
ltl called_once { [] (calls <= 1) }
ltl newcomer_safe { [] (!newcomer_harmed) }
ltl deleted_means_gone { [] (!deleted_too_early) }
ltl one_valid_claim { [] !(inside_by_valid_claim(0) && inside_by_valid_claim(1)) }
ltl fence_rises { [] (!fence_fell) }
ltl final_is_final { [] (!final_moved) }
ltl safe { [] (wins <= 1 && destroyed <= 1 && calls <= 1 && !newcomer_harmed && !deleted_too_early && !fence_fell
               && !final_moved && !(inside_by_valid_claim(0) && inside_by_valid_claim(1))) }
/* Assumed: every call to the backend ends some day, and crashes, faults and redrives are finite (the counts above).
 * So every run ends, under any scheduler. `live` says that no run ends with an accepted delete that is not settled. */
ltl live { [] (accepted -> <> settled) }

inline move(to) {
    final_moved = final_moved || job == SUCCEEDED || status == DELETED;
    job = to
}

/* -- two callers, one resource ------------------------------------------------------------------------------- */
active [2] proctype Delete() {
#ifdef NO_GUARD /* the incident: read, decide, then write; and there is no unique index */
    if
    :: status != ACTIVE -> goto already
    :: status == ACTIVE
    fi;
    atomic { status = DELETING; move(PENDING); wins++ };
#else
#ifdef NO_ONE_TRANSACTION /* the status commits first, then the job's row: the API may crash in between */
    if
    :: atomic { status == ACTIVE -> status = DELETING }
    :: status != ACTIVE -> goto already
    fi;
    if
    :: goto already
    :: atomic { move(PENDING); wins++ }
    fi;
#else
    if
    :: atomic { status == ACTIVE -> status = DELETING; move(PENDING); wins++ }
    :: status != ACTIVE
    fi;
#endif
#endif
already:
    skip
}

/* -- the backend's verbs ------------------------------------------------------------------------------------- */

/* One inspection. What it finds may be out of date at the worker's next step. */
inline inspect() {
    if
    :: faults > 0 -> faults--; seen = UNAVAILABLE
#ifdef UNOBSERVABLE
    :: seen = (answer == DONE -> ABSENT : SAME) /* a worker knows only what it did itself */
#else
    :: name == OURS || renamed -> seen = SAME
    :: name == NEWCOMER && !renamed -> seen = DIFFERENT
    :: name == FREE && !renamed -> seen = ABSENT
#endif
    fi
}

/* A destruction by name. The ghosts record whether it hit our object or the newcomer's. */
inline destroy_by_name() {
    if
    :: name == OURS -> name = FREE; destroyed++
    :: name == NEWCOMER -> name = FREE; newcomer_harmed = true
    :: name == FREE
    fi
}

/* A teardown has one effect or two. Each may fail before it took place or after, and DONE may be false. */
#ifdef UNOBSERVABLE
inline teardown() {
    atomic {
        if
        :: faults > 0 -> faults--; answer = FAILED
        :: calls++; destroy_by_name(); answer = DONE
        :: faults > 0 -> faults--; calls++; destroy_by_name(); answer = FAILED
        fi;
        may_die()
    }
}
#else
#ifdef NO_IDENTITY
inline teardown() {
    atomic { destroy_by_name(); answer = DONE; may_die() }
}
#else
#ifdef CHECK_THEN_ACT /* identity is checked, but in an earlier step than the effect */
inline teardown() {
    atomic { answer = (name == NEWCOMER -> REFUSED : DONE); may_die() };
    atomic { if :: answer == DONE -> destroy_by_name() :: else fi; may_die() }
}
#else
inline teardown() {
    /* The rename. The transaction checks what it renamed before it commits, so check and effect are one step. */
    atomic {
        if
        :: faults > 0 -> faults--; answer = FAILED
        :: faults > 0 -> faults--; answer = DONE; goto inspect_again /* reported as done, but nothing was done */
        :: name == OURS -> name = FREE; renamed = true; answer = DONE
        :: name == NEWCOMER && !renamed -> answer = REFUSED
        :: name == FREE || (name == NEWCOMER && renamed) -> answer = DONE
        fi;
        may_die()
    };
    /* The drop, by the new name. It contains the generation, so no other object can have it. */
    atomic {
        if
        :: answer == DONE && renamed -> renamed = false; destroyed++
        :: answer == DONE && renamed && faults > 0 -> faults--; answer = FAILED
        :: answer == DONE && renamed && faults > 0 -> faults--; renamed = false; destroyed++; answer = FAILED
        :: answer != DONE || !renamed
        fi;
        may_die()
    }
}
#endif
#endif
#endif

/* -- the runner ---------------------------------------------------------------------------------------------- */

inline forget() { held[me] = 0; inside[me] = false; before = 0; seen = 0; answer = 0 }

/* A worker may crash after any step, and knows nothing when it is started again. */
inline may_die() {
    if
    :: crashes > 0 -> crashes--; forget(); goto idle
    :: true
    fi
}

/* The outcomes. Each has a guard: a worker that lost its claim changes nothing. */
inline complete() {
    if
    :: MINE(me) ->
        deleted_too_early = deleted_too_early || name == OURS || renamed;
        move(SUCCEEDED);
        status = DELETED
    :: else
    fi
}
inline stick() {
    if
    :: MINE(me) -> move(STUCK)
    :: else
    fi
}
inline retry() { /* available_at is not modelled: a retry may be due at once or much later */
    if
    :: MINE(me) && attempts < MAX_ATTEMPTS -> move(PENDING)
    :: MINE(me) && attempts >= MAX_ATTEMPTS -> move(STUCK)
    :: else
    fi
}
inline defer() {
    if
    :: MINE(me) && started != held[me] -> move(PENDING); attempts--
    :: else
    fi
}

proctype Worker(byte me) {
    byte before;  /* started_fence, as the claim read it */
    mtype seen;   /* what the last inspection found */
    mtype answer; /* what the teardown answered */
end_idle: idle:
    atomic { /* claim: one step, since the statement locks the row (SKIP LOCKED) and checks its state again */
        job == PENDING ->
        move(RUNNING);
        attempts++;
        lease = true;
#ifndef NO_FENCE
        fence++;
#endif
        fence_fell = fence_fell || fence < highest;
        highest = fence;
        held[me] = fence + HELD;
        before = started;
        may_die()
    };
    atomic { /* inspect */
#ifdef UNOBSERVABLE
        if
        :: before != 0 -> seen = UNKNOWN
        :: else -> inspect()
        fi;
#else
        inspect();
#endif
        may_die()
    };
    atomic {
        if
        :: seen == UNKNOWN -> stick(); forget(); goto idle /* an earlier attempt may have acted */
        :: seen == ABSENT -> complete(); forget(); goto idle
        :: seen == DIFFERENT -> stick(); forget(); goto idle
        :: seen == UNAVAILABLE -> defer(); forget(); goto idle
        :: seen == SAME && MAY_START -> /* start: durable, before the destructive call */
            inside[me] = true;
#ifndef NO_START_MARK
            started = held[me];
#endif
            seen = 0
        :: seen == SAME && !MAY_START -> forget(); goto idle
        fi;
        may_die()
    };
    teardown();
inspect_again:
    atomic { /* inspect again */
        if
        :: answer == DONE -> inspect()
        :: else
        fi;
#ifdef NO_INSPECT_AFTER
        seen = ABSENT;
#endif
        may_die()
    };
    atomic {
        if
        :: answer == REFUSED -> stick()
#ifdef UNOBSERVABLE
        :: answer == FAILED -> stick()
#else
        :: answer == FAILED -> retry()
#endif
        :: answer == DONE && seen == ABSENT -> complete()
        :: answer == DONE && seen == DIFFERENT -> stick()
        :: answer == DONE && (seen == SAME || seen == UNAVAILABLE) -> retry()
        fi;
        forget();
        goto idle
    }
}

/* -- time ---------------------------------------------------------------------------------------------------- */
active proctype Time() {
end_waiting:
    do
    :: atomic { job == RUNNING && lease -> lease = false } /* at any moment; a heartbeat only delays it */
#ifndef NO_SWEEP
    :: atomic { job == RUNNING && !lease && attempts < MAX_ATTEMPTS -> move(PENDING) }
    :: atomic { job == RUNNING && !lease && attempts >= MAX_ATTEMPTS -> move(STUCK) }
#endif
    od
}

/* -- operators, tenants and administrators ------------------------------------------------------------------- */
active proctype Operator() {
    byte saw;
end_waiting:
    do
    :: atomic { job == STUCK && redrives > 0 -> redrives--; saw = fence };
        atomic {
            if
            :: job == STUCK && saw == fence ->
                move(PENDING);
                attempts = 0;
#ifdef FENCE_RESET
                fence = 0;
#endif
            :: true /* the operator leaves it stuck, or was too slow and is refused */
            fi;
            saw = 0
        }
    od
}

/* Once the name is free, a tenant may create an object of that name, which has another identity. */
active proctype Reuser() {
end_waiting:
    name == FREE -> name = NEWCOMER
}

/* An administrator of the backend removes our object by hand while the job is stuck. On an unobservable backend, where
 * a teardown knows only a name, the protocol cannot protect the newcomer then: docs/model/run shows this as a known
 * limit. */
#if !defined(UNOBSERVABLE) || defined(BY_HAND)
active proctype Administrator() {
end_waiting:
    atomic { job == STUCK && name == OURS -> name = FREE }
}
#endif

init {
    atomic { run Worker(0); run Worker(1) }
}
