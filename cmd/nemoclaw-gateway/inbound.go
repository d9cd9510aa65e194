package main

import (
	"errors"
	"os"

	"nemoclaw/egress/netfilter"
	"nemoclaw/hooks"
)

// hearInbound begins to hear of connections that come in through an uplink, and
// of those that are refused there. It may be that only one of both is heard.
func hearInbound(uplink *os.File) (flows *netfilter.Flows, refusals *netfilter.Refusals, err error) {
	err = hooks.In(uplink, func() (err error) {
		var rerr error
		flows, err = netfilter.OpenFlows(hooks.InboundMark, hooks.InboundMask)
		refusals, rerr = netfilter.OpenRefusals(hooks.RefusedGroup)
		return errors.Join(err, rerr)
	})
	return flows, refusals, err
}
