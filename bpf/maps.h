/* Every map. Made by `python -m schemas.render` from schemas/: change it there.
 *
 *	MAP(kind, KIND, key, value, name, flags)
 *	RING(name)
 *
 * The front defines these two. The loader sets how many entries there are and how wide those of vectors are.
 */
/* canonical 5-tuple → the flow: preallocated, so that a packet never waits for memory */
MAP(hash, HASH, struct flow_key, struct flow, flows, 0)
/* slot, node → where ranges begin: over random keys an LPM trie takes twenty steps, this one nine */
MAP(array, ARRAY, u32, struct range_node, range_nodes, BPF_F_MMAPABLE)
/* slot, range of addresses → identity and classes of the longest prefix around it */
MAP(array, ARRAY, u32, struct address_range, ranges, BPF_F_MMAPABLE)
/* slot, port group, port → port class: direct index, no search */
MAP(array, ARRAY, u32, u32, ports, BPF_F_MMAPABLE)
/* slot, class → bit vector over rules, in order of credit, behind its summary */
MAP(array, ARRAY, u32, u64, source_rules, BPF_F_MMAPABLE)
/* slot, class → bit vector over rules, in order of credit, behind its summary */
MAP(array, ARRAY, u32, u64, destination_rules, BPF_F_MMAPABLE)
/* slot, class → bit vector over rules, in order of credit, behind its summary */
MAP(array, ARRAY, u32, u64, port_rules, BPF_F_MMAPABLE)
/* slot, rule → what it does */
MAP(array, ARRAY, u32, struct rule, rules, BPF_F_MMAPABLE)
/* slot, rule number → every packet it decided: per CPU, so counting is exact without atomics */
MAP(percpu_array, PERCPU_ARRAY, u32, struct rule_counter, rule_counters, 0)
/* the same index → rule_counters when the revision in the slot began; user space's own note */
MAP(array, ARRAY, u32, struct rule_counter, rule_baseline, BPF_F_MMAPABLE)
/* COUNTER_* → count since the map was made */
MAP(percpu_array, PERCPU_ARRAY, u32, u64, counters, 0)
/* datagram → its flow and verdict, for the pieces without ports; least recently used goes first */
MAP(lru_hash, LRU_HASH, struct fragment_key, struct fragment, fragments, 0)
/* the node's state, written by the collector */
MAP(array, ARRAY, u32, struct config, config, BPF_F_MMAPABLE)
/* what all CPUs share */
MAP(array, ARRAY, u32, struct totals, totals, BPF_F_MMAPABLE)
/* event budget, wake-ups, flow ids */
MAP(percpu_array, PERCPU_ARRAY, u32, struct cpu_state, cpu_state, 0)
/* the packet at hand */
MAP(percpu_array, PERCPU_ARRAY, u32, struct scratch, scratch, 0)
/* ifindex → 1: watched on ingress; egress leaves what came in there alone */
MAP(hash, HASH, u32, u32, watched, 0)
/* struct verdict_event, all of one size; bytes */
RING(events)
