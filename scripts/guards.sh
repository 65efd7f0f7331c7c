#!/usr/bin/env bash
# Takes the guards of the protocol out of the code, one at a time, runs the test named for each and expects it to fail.
# Works on a copy of the tree. Prints the table that stands in DESIGN.md; ends with 1 if a guard is not missed.
#
#   scripts/guards.sh            all guards
#   scripts/guards.sh "time"     those whose name holds this text
set -euo pipefail
cd "$(dirname "$0")/.."

only=${1:-}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
# A directory of its own: cargo takes two copies of one package in one directory for the same.
export CARGO_TARGET_DIR="$PWD/target/guards"
unset REDIS_URL

# Brings the copy to the state of the working tree.
refresh() {
    git ls-files -z | tar --null --ignore-failed-read -cf - -T - 2>/dev/null | tar -xf - -C "$copy"
}

missed=0
rows=""

# guard NAME FILE PERL-SUBSTITUTION TEST-TARGET TEST
guard() {
    local name=$1 file=$2 edit=$3 target=$4 test=$5 log before
    case "$name" in *"$only"*) ;; *) return 0 ;; esac
    refresh
    before=$(cksum <"$copy/$file")
    perl -0pi -e "$edit" "$copy/$file"
    if [ "$(cksum <"$copy/$file")" = "$before" ]; then
        echo "error: the guard \"$name\" is not where it is looked for, $file" >&2
        exit 1
    fi
    local which=(--package cache-core --test "$target")
    [ "$target" = lib ] && which=(--package cache-core --lib)
    [ "$target" = schedules ] && which=(--package cache-schedules --test schedules)
    log="$copy/log"
    if ! (cd "$copy" && cargo test --quiet "${which[@]}" --no-run) >"$log" 2>&1; then
        cat "$log" >&2
        echo "error: without the guard \"$name\" the code does not compile" >&2
        exit 1
    fi
    local outcome=missed
    if (cd "$copy" && timeout 120 cargo test --quiet "${which[@]}" -- --exact "$test") >"$log" 2>&1; then
        outcome="NOT MISSED"
        missed=1
        grep -q "1 passed" "$log" || outcome="NO SUCH TEST"
    fi
    printf '%-12s %s\n' "$outcome" "$name" >&2
    rows+="| $name | \`$target\`: \`$test\` | $outcome |"$'\n'
}

src=cache-core/src
lua=$src/remote/steps/lua

guard "token compare" $lua/fill.lua 's/ or lease:sub\(3, 18\) ~= ARGV\[1\]//' \
    guards a_fill_under_somebody_elses_lease_is_refused
guard "generation compare" $lua/fill.lua 's/table\.concat\(ids\) == lease:sub\(19\)/ids[1] == lease:sub(19, 34)/' \
    guards a_fill_under_an_older_generation_is_refused
guard "sweep fence" $lua/fill.lua "s/table\\.concat\\(ids\\) == lease:sub\\(19\\)/table.concat(ids, '', 2) == lease:sub(35)/" \
    guards a_fill_after_a_sweep_that_began_later_is_refused
guard "random generation" $src/remote/mod.rs \
    's/map\(\|_\| rand::random\(\)\)/map(|_| [7; 16])/' \
    guards an_invalidated_keyspace_stays_so_when_it_is_written_to_again
guard "SET drops the lease" $lua/set.lua "s/redis\\.call\\('DEL', KEYS\\[2\\]\\)//" \
    guards a_fill_after_a_set_is_refused
guard "INVALIDATE drops the lease" $lua/invalidate.lua "s/redis\\.call\\('DEL', KEYS\\[2\\]\\)//" \
    invalidation an_invalidation_by_another_process_while_this_one_fetches_is_never_undone
guard "hand-out law (a)" $src/flight/mod.rs 's/joined_before\(outcome\.fetch_began\)/outcome.fetch_began.is_some()/' \
    guards a_refused_value_is_not_handed_to_who_joined_after_its_fetch_began
guard "hand-out law (b)" $src/flight/mod.rs 's/joined_before\(outcome\.accepted\)/outcome.accepted.is_some()/' \
    lib flight::tests::an_accepted_value_goes_to_who_joined_before_the_command_was_sent
guard "stripe check" $src/near/mod.rs 's/ && self\.stripes\.unchanged\(&entry\.watch\)//' \
    lib near::tests::an_entry_asked_for_before_a_bump_is_never_served_even_when_inserted_after_it
guard "snapshot before send" $src/read/look.rs \
    's/accept\(read, asked\.at, asked\.watch, self\.slot\)/accept(read, asked.at, self.target.watch(), self.slot)/' \
    guards an_answer_older_than_a_notice_heard_before_it_is_not_kept
guard "bump on resubscribe" $src/invalidate/backplane.rs 's/state\.near\.stripes\.bump_everything\(\);(\s+state\.waiters\.wake_all\(\);\s+drop\(\(state, remote\)\))/$1/' \
    backplane what_was_invalidated_while_the_subscriber_was_away_is_forgotten
guard "time bound" $src/target.rs 's/from_millis\(2_950\)/from_millis(60_000)/' \
    backplane a_link_that_hears_nothing_serves_nothing_old_for_longer_than_the_bound
guard "role probe" $src/remote/subscription.rs 's/cmd\("PEXPIRE"\)\.arg\(own_channel\)\.arg\(MARKER_MS\)/cmd("EXISTS").arg(own_channel)/' \
    guards a_demoted_primary_vouches_for_nothing
guard "release on failure" $src/read/lead/lease.rs 's/(let Some\(lease\) = self\.lease\.take\(\))(\s+&& let Ok\(runtime\))/$1.filter(|_| false)$2/' \
    stampede a_dropped_fetch_gives_its_lease_back
guard "new token of a second LEASE" $src/remote/mod.rs 's/std::mem::replace\(&mut lease\.token, rand::random\(\)\)/lease.token/' \
    regressions a_lease_that_arrives_again_after_an_invalidation_stores_nothing
guard "number of the call" $src/remote/steps/scripts.rs 's/repeated\[\.\.\] == number\[\.\.\]/repeated.len() == number.len()/' \
    chaos_network an_invalidation_is_not_acknowledged_by_the_reply_to_another_command
guard "patience with a first connection" $src/remote/wire/pool.rs 's/if epoch\.begun\.elapsed\(\) < \*patience/if false/' \
    chaos_network a_connection_that_takes_longer_to_make_than_op_timeout_is_made
# Counted as a WATCH all the same, or the test would wait for one.
guard "WATCH" $src/remote/steps/transactions.rs 's/cmd\("WATCH"\);(\s+for call in calls \{\s+)watch\.arg\(step\.watched\(call\)\)/cmd("WATCH").arg("none");$1let _ = (\&watch, step.watched(call))/' \
    without_scripts a_fill_between_watch_and_exec_is_doomed_by_every_invalidation
guard "SET's time in a transaction" $src/remote/steps/decide.rs 's/arg\("PXAT"\)\.arg\(\*late\)/arg("PX").arg(*ttl)/' \
    without_scripts a_set_that_arrives_too_late_is_not_stored
guard "must-miss of the journal" $src/pending/journal.rs 's/self\.has_pending\(\) && self\.covers\(key\)/false \&\& self.has_pending() \&\& self.covers(key)/' \
    journal a_pending_invalidation_is_a_miss_here_at_once_and_everywhere_once_the_server_is_reached
guard "look of an idle process" $src/invalidate/resend.rs 's/\|\| state\.journal\.has_acknowledged\(\)\)/|| false)/' \
    chaos_restart an_idle_process_removes_what_a_snapshot_brings_back
guard "journal of a set" $src/write.rs 's/resend::executed\(state, [^;]*;//' \
    chaos_restart an_idle_process_removes_what_a_snapshot_brings_back
guard "another run of the server" $src/remote/wire/run.rs 's/if !is_same \{/if !is_same \&\& false {/' \
    chaos_restart the_first_call_after_a_restart_from_a_snapshot_serves_nothing_it_had_invalidated
guard "replica refused" $src/remote/wire/connect.rs 's/is_master && !refused\n/is_master || !refused || true\n/' \
    sentinel sentinels_that_are_gone_hang_or_are_wrong_are_passed_over
guard "watch of the primary" $src/remote/wire/topology.rs 's/named != \*used\.get_connection_info\(\)\.addr\(\)/false \&\& $&/' \
    sentinel nobody_stays_with_a_primary_that_was_given_up_while_it_lives
guard "sweep over one connection" $src/remote/wire/send.rs \
    's/match command\.query_async::<Value>\(&mut connection\.handle\.clone\(\)\)\.await \{\s+Ok\(reply\) if answers\(&reply\) => Ok\(reply\),.*?\n            \}\n/self.attempt(Some(connection.clone()), command, answers, Tries::Two).await.map(|(reply, _)| reply)\n/s; s/if self\.pool\.is_current\(connection\)/if true || self.pool.is_current(connection)/' \
    sweep a_sweep_whose_connection_breaks_is_pending_and_begins_again
guard "sweep of one pool" $src/remote/wire/send.rs 's/if self\.pool\.is_current\(connection\)/if true || self.pool.is_current(connection)/' \
    sweep a_sweep_whose_pool_is_replaced_is_pending_and_begins_again
guard "pass a wake-up on" $src/flight/mod.rs 's/(pass it on\.\s+)self\.flights\.pass_on\(&self\.flight, state\);/$1drop(state);/' \
    schedules nobody_is_handed_what_was_invalidated_before
guard "second look of a new leader" $src/read/mod.rs \
    's/(let Some\(value\) = near\(call\.target\))( else \{ return Ok\(leader\))/$1.filter(|_| false)$2/' \
    schedules a_cold_key_is_fetched_once
guard "touch under the lock of stores" $src/near/mod.rs \
    's/(would be lost to the older one\.\s+)let _writing = self\.writing\(key\);/$1/' \
    schedules a_touch_never_brings_anything_back
guard "takeover of a silent task" $src/task.rs 's/polled == 0 \|\| now\.since\(Instant::from_bits\(polled\)\) >= SILENCE/{ let _ = now; polled == 0 }/' \
    journal what_is_pending_on_an_idle_runtime_is_sent_from_a_busy_one
guard "a deposed task ends" $src/task.rs 's/if !self\.renew\(\) \{/if !self.renew() \&\& false {/' \
    schedules there_is_one_task_and_it_is_never_missed
guard "own write fences" $src/read/lead/mod.rs 's/if self\.call\.target\.is_fenced\(\) \{/if self.call.target.is_fenced() \&\& false {/' \
    hold a_fence_of_this_process_counts_while_redis_cannot_be_asked

printf '| guard taken out | test | |\n|---|---|---|\n%s' "$rows"
exit "$missed"
