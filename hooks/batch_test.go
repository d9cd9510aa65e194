package hooks

import (
	"errors"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What the kernel refuses of a batch, wherever it stands in it, is said, and
// then nothing of the batch is in force; what it does not refuse is, when commit
// returns.
func TestABatchIsAllOrNothing(t *testing.T) {
	needRoot(t)
	for _, refused := range []string{"", "a rule", "the last rule"} {
		ns := mustNetns(t)
		b, err := newBatch()
		if err != nil {
			t.Fatal(err)
		}
		tab := b.CreateTable(table())
		own := chain{name: "own", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, prio: *nftables.ChainPriorityFilter, policy: nftables.ChainPolicyDrop}
		own.rule(drop)
		load(b, tab, []chain{own})
		stray := &nftables.Rule{Table: tab, Chain: &nftables.Chain{Name: "none"}, Exprs: []expr.Any(drop)}
		switch refused {
		case "a rule":
			b.AddRule(stray)
			load(b, tab, []chain{{name: "other", kind: own.kind, hook: own.hook, prio: own.prio, policy: own.policy}})
		case "the last rule":
			b.AddRule(stray)
		}
		err = b.commit(ns)
		if refused == "" {
			if err != nil {
				t.Errorf("a good batch: %v", err)
			}
			if err := compareIn(ns, []chain{own}); err != nil {
				t.Errorf("a good batch is not in force: %v", err)
			}
			continue
		}
		if !errors.Is(err, unix.ENOENT) {
			t.Errorf("%s is refused: commit says %v", refused, err)
		}
		if err := compareIn(ns, nil); err == nil || err.Error() != "the fence's table is missing" {
			t.Errorf("%s is refused, and of the rest: %v", refused, err)
		}
	}
}
