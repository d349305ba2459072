#!/bin/sh
# `hadoop`, `hdfs` and `yarn` in one: minicluster.py copies this to bin/ under the three names.
set -eu

home=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")/.." && pwd)
name=$(basename -- "$0")
# JAVA_HOME, HADOOP_JARS and HADOOP_JAVA_FLAGS of this cluster.
. "$home/etc/hadoop/hadoop-env.sh"
HADOOP_CONF_DIR=${HADOOP_CONF_DIR:-$home/etc/hadoop}
export HADOOP_CONF_DIR HADOOP_HOME="$home" JAVA_HOME

usage() {
    echo "Usage: $name COMMAND [ARGUMENTS]. Commands: $1, CLASS" >&2
    exit 2
}

command=${1:-}
[ $# -gt 0 ] && shift
cli=org.apache.hadoop.yarn.client.cli
tools=org.apache.hadoop.hdfs.tools
case $name:$command in
    *:classpath)
        entries=$HADOOP_CONF_DIR
        if [ "${1:-}" = --glob ]; then
            for jar in "$HADOOP_JARS"/*.jar; do entries=$entries:$jar; done
        else
            entries="$entries:$HADOOP_JARS/*"
        fi
        echo "$entries${HADOOP_CLASSPATH:+:$HADOOP_CLASSPATH}"
        exit 0 ;;
    *:version) class=org.apache.hadoop.util.VersionInfo ;;
    *:envvars)
        echo "JAVA_HOME='$JAVA_HOME'"
        echo "HADOOP_HOME='$HADOOP_HOME'"
        echo "HADOOP_CONF_DIR='$HADOOP_CONF_DIR'"
        exit 0 ;;
    hadoop:jar | yarn:jar) class=org.apache.hadoop.util.RunJar ;;
    hadoop:fs | hdfs:dfs) class=org.apache.hadoop.fs.FsShell ;;
    hdfs:dfsadmin) class=$tools.DFSAdmin ;;
    hdfs:haadmin) class=$tools.DFSHAAdmin ;;
    hdfs:fsck) class=$tools.DFSck ;;
    hdfs:getconf) class=$tools.GetConf ;;
    hdfs:groups) class=$tools.GetGroups ;;
    hdfs:ec) class=$tools.ECAdmin ;;
    hdfs:storagepolicies) class=$tools.StoragePolicyAdmin ;;
    hdfs:snapshotDiff) class=$tools.snapshot.SnapshotDiff ;;
    hdfs:lsSnapshottableDir) class=$tools.snapshot.LsSnapshottableDir ;;
    yarn:application | yarn:app | yarn:applicationattempt | yarn:container)
        class=$cli.ApplicationCLI
        set -- "$command" "$@" ;;
    yarn:node) class=$cli.NodeCLI ;;
    yarn:queue) class=$cli.QueueCLI ;;
    yarn:logs) class=$cli.LogsCLI ;;
    yarn:rmadmin) class=$cli.RMAdminCLI ;;
    yarn:cluster) class=$cli.ClusterCLI ;;
    yarn:top) class=$cli.TopCLI ;;
    *:*.*) class=$command ;;
    hadoop:*) usage "classpath, envvars, fs, jar, version" ;;
    hdfs:*) usage "classpath, dfs, dfsadmin, ec, envvars, fsck, getconf, groups, haadmin,\
 lsSnapshottableDir, snapshotDiff, storagepolicies, version" ;;
    *) usage "app, application, applicationattempt, classpath, cluster, container, envvars, jar,\
 logs, node, queue, rmadmin, top, version" ;;
esac

# shellcheck disable=SC2086  # several options each
exec "$JAVA_HOME/bin/java" -Xmx256m $HADOOP_JAVA_FLAGS ${HADOOP_CLIENT_OPTS:-} \
    -cp "$HADOOP_CONF_DIR:$HADOOP_JARS/*${HADOOP_CLASSPATH:+:$HADOOP_CLASSPATH}" "$class" "$@"
